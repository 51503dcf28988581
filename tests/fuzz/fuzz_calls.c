/* libFuzzer's target for the record and the matrix functions: any bytes become a call. Where every array lies within its
 * memory, the call is made, and AddressSanitizer sees what it touches; where not, only what looks at the record alone.
 * A call that is refused must have written nothing. */
#include "fastce.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA = 4096, ARRAYS = 8, ROOM = 8 };

typedef struct input {
    const uint8_t *data;
    size_t size;
} input;

static uint64_t take(input *in, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes && in->size; i++, in->data++, in->size--) value = value << 8 | *in->data;
    return value;
}

/* Mostly a small number; sometimes one from the edges of its type. */
static int64_t number(input *in) {
    static const int64_t edges[] = {INT64_MAX, INT64_MIN,        INT64_MAX / 2,    INT64_MIN / 2,
                                    INT32_MAX, (int64_t)1 << 48, (int64_t)1 << 61, -1};
    uint64_t kind = take(in, 1);
    if (kind >= 250) return edges[take(in, 1) % 8];
    if (kind >= 240) return (int64_t)take(in, 8);
    if (kind >= 200) return -(int64_t)take(in, 1);
    return (int64_t)(take(in, 1) % 40);
}

static double real(input *in) {
    static const double some[] = {0, 1, 0.5, 1e-3, 2, -1, 1e300, -1e300};
    uint64_t kind = take(in, 1);
    double x;
    if (kind < 200) return some[kind % 6];
    uint64_t bits = take(in, 8);
    memcpy(&x, &bits, 8);
    return x;
}

/* Whether an array of so many classes stays within the arena, in numbers that do not overflow. */
static bool fits(const char *arena, const fastce_array *a, const fastce_problem *q, int64_t n_classes) {
    if (!a->data) return true;
    __int128 low = (const char *)a->data - arena, high = low + fastce_dtype_size(a->dtype);
    for (int i = 0; i <= q->n_axes; i++) {
        __int128 length = i < q->n_axes ? q->shape[i] : n_classes;
        __int128 stride = i < q->n_axes ? a->strides[i] : a->class_stride;
        if (length == 0) return true;
        *(stride < 0 ? &low : &high) += (length - 1) * stride;
    }
    return low >= 0 && high <= ARENA;
}

static void fill_array(input *in, fastce_array *a, char *arena, ptrdiff_t *strides) {
    a->data = take(in, 1) % 16 ? arena + take(in, 2) % (ARENA + 1) : NULL;
    a->dtype = (fastce_dtype)(take(in, 1) % 64 ? take(in, 1) % FASTCE_DTYPE_COUNT : take(in, 1));
    a->byte_swapped = take(in, 1) % 8 == 0;
    a->class_stride = (ptrdiff_t)number(in);
    for (int i = 0; i < ROOM; i++) strides[i] = (ptrdiff_t)number(in);
    a->strides = strides;
}

static void call_matrices(input *in, char *arena, char *copy) {
    fastce_matrix m[3];
    for (int i = 0; i < 3; i++) {
        m[i].data = arena + i * (ARENA / 4) + take(in, 1);
        m[i].dtype = (fastce_dtype)(take(in, 1) % FASTCE_DTYPE_COUNT);
        m[i].n_rows = number(in);
        m[i].n_classes = number(in);
        m[i].class_stride = number(in);
        m[i].row_stride = number(in);
        if (take(in, 1) % 4) m[i].n_rows = m[0].n_rows, m[i].n_classes = m[0].n_classes;
    }
    ptrdiff_t strides[3][1];
    fastce_problem q = fastce_new_problem();
    int64_t shape[1] = {m[0].n_rows};
    q.n_axes = 1, q.shape = shape, q.n_classes = m[0].n_classes;
    for (int i = 0; i < 3; i++) {
        strides[i][0] = m[i].row_stride;
        fastce_array a = {m[i].data, m[i].dtype, 0, m[i].class_stride, strides[i]};
        if (m[0].n_rows < 0 || m[0].n_classes < 0 || !fits(arena, &a, &q, q.n_classes)) return;
    }
    /* Zero strides make any number of rows fit, and take as long; what is refused for its size is not waited for. */
    if (m[0].n_rows <= (int64_t)1 << 56 && (__int128)m[0].n_rows * m[0].n_classes > 1 << 16) return;
    if (m[0].n_classes > 1 << 16) return;
    fastce_options o;
    memset(&o, 0, sizeof o);
    uint64_t flags = take(in, 2);
    o.reduction = (fastce_reduction)(flags % 4 == 3);
    o.label_smoothing = flags & 4 ? real(in) : 0;
    o.z_loss = flags & 8 ? real(in) : 0;
    o.denominator = flags & 16 ? real(in) : 0;
    o.has_ignore_index = (flags & 32) != 0;
    o.ignore_index = flags & 32 ? number(in) : 0;
    fastce_result result;
    fastce_column labels = {m[1].data, m[1].dtype, m[1].row_stride};
    fastce_status status;
    int threads = 1;
    memcpy(copy, arena, ARENA);
    switch (take(in, 1) % 9) {
    case 0:
        status = fastce_cross_entropy(m[0], labels, &o, threads, &result);
        break;
    case 1:
        status = fastce_cross_entropy_with_grad(m[0], labels, &o, m[2], threads, &result);
        break;
    case 2:
        status = fastce_dense_cross_entropy(m[0], m[1], &o, threads, &result);
        break;
    case 3:
        status = fastce_dense_cross_entropy_with_grad(m[0], m[1], &o, m[2], threads, &result);
        break;
    case 4:
        status = fastce_binary_cross_entropy(m[0], m[1], &o, threads, &result);
        break;
    case 5:
        status = fastce_binary_cross_entropy_with_grad(m[0], m[1], &o, m[2], threads, &result);
        break;
    case 6:
        status = fastce_softmax(m[0], m[2], threads);
        break;
    case 7:
        status = fastce_log_softmax(m[0], m[2], threads);
        break;
    default:
        if (m[0].n_rows > ARENA / 8) return;
        status = fastce_logsumexp(m[0], arena, threads);
        break;
    }
    if (status != FASTCE_OK && memcmp(copy, arena, ARENA)) abort();
}

static void call_record(input *in, char *arena, char *copy) {
    ptrdiff_t strides[ARRAYS][ROOM];
    int64_t shape[ROOM];
    fastce_statistics statistics;
    fastce_problem q = fastce_new_problem();
    q.output = (fastce_output)(take(in, 1) % (FASTCE_OUTPUT_COUNT + 1));
    q.target_kind = (fastce_target)(take(in, 1) % (FASTCE_TARGET_COUNT + 1));
    q.kind = (fastce_kind)(take(in, 1) % 2 ? take(in, 1) % (FASTCE_KIND_COUNT + 1) : 0);
    q.n_axes = (int32_t)(take(in, 1) % 4);
    for (int i = 0; i < ROOM; i++) shape[i] = number(in);
    q.shape = shape;
    q.n_classes = take(in, 1) % 4 ? number(in) : 1;
    fastce_array *arrays[ARRAYS] = {&q.logits,      &q.target, &q.sample_weight,   &q.out,
                                    &q.grad_output, &q.factor, &q.positive_weight, &q.probabilities};
    uint64_t present = take(in, 1) & take(in, 1);
    for (int i = 0; i < ARRAYS - 1; i++)
        if (i < 2 || i == 3 || (present >> i & 1)) fill_array(in, arrays[i], arena, strides[i]);
    bool safe = true;
    for (int i = 0; i < q.n_axes; i++) safe = safe && shape[i] >= 0 && shape[i] <= ARENA;
    safe = safe && q.n_classes >= 0 && q.n_classes <= ARENA;
    int64_t n_rows = 1;
    for (int i = 0; i < q.n_axes && safe; i++) n_rows *= shape[i];
    q.target_scale = real(in), q.z_loss = real(in), q.grad_scale = real(in), q.clip = real(in), q.gamma = real(in);
    q.temperature = real(in), q.positive = real(in), q.negative = real(in);
    q.has_ignore_index = take(in, 1) % 2;
    q.ignore_index = number(in);
    if (take(in, 1) % 2) q.row_values = arena + take(in, 2) % ARENA;
    if (take(in, 1) % 8 == 0) q.class_weight = (const double *)(arena + take(in, 1) * 8);
    if (take(in, 1) % 8 == 0) q.class_vector = (const double *)(arena + take(in, 1) * 8);
    memset(&statistics, 0, sizeof statistics);
    if (q.output == FASTCE_STATISTICS) {
        statistics.lse = take(in, 1) % 2 ? arena : NULL;
        statistics.rank = take(in, 1) % 2 ? (int64_t *)(arena + 1024) : NULL;
        statistics.margin = take(in, 1) % 2 ? arena + 2048 : NULL;
        statistics.entropy = take(in, 1) % 2 ? arena + 3072 : NULL;
        q.statistics = &statistics;
    }
    const bool sparse = q.target_kind == FASTCE_SPARSE;
    if (sparse) {
        fill_array(in, &q.probabilities, arena, strides[ARRAYS - 1]);
        q.n_listed = number(in);
        q.spread_missing = (int32_t)take(in, 1) % 2;
        safe = safe && q.n_listed >= 0 && q.n_listed <= ARENA;
    }
    q.softcap = take(in, 1) % 2 ? real(in) : 0;
    fastce_kernel_name(&q);
    safe = safe && n_rows >= 0 && n_rows <= 128 && n_rows * q.n_classes <= 1 << 16;
    bool in_arena = safe && (!q.row_values || (char *)q.row_values + 8 * n_rows <= arena + ARENA) &&
                    (!q.class_weight || (char *)(q.class_weight + q.n_classes) <= arena + ARENA) &&
                    (!q.class_vector || (char *)(q.class_vector + q.n_classes) <= arena + ARENA);
    const int64_t of_target = sparse ? q.n_listed : q.target_kind == FASTCE_DENSE ? q.n_classes : 1;
    for (int i = 0; i < ARRAYS && in_arena; i++)
        in_arena = fits(arena, arrays[i], &q, i == 1 || i == 7 ? of_target : i == 0 || i == 3 ? q.n_classes : 1);
    if (!in_arena) return;
    fastce_totals totals;
    memcpy(copy, arena, ARENA);
    fastce_scan(&q, 1, &totals);
    if (memcmp(copy, arena, ARENA)) abort();
    if (fastce_run(&q, NULL, 1, &totals) != FASTCE_OK && memcmp(copy, arena, ARENA)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    char *arena = malloc(ARENA), *copy = malloc(ARENA);
    if (!arena || !copy) abort();
    uint64_t pattern = take(&in, 1);
    for (int i = 0; i < ARENA; i++)
        arena[i] = pattern < 128 ? (char)(i % 4 == 3 && pattern < 64 ? 0x3e : 0) : (char)((i * 2654435761u) >> 13);
    if (take(&in, 1) % 2)
        call_matrices(&in, arena, copy);
    else
        call_record(&in, arena, copy);
    free(arena);
    free(copy);
    return 0;
}

/* Checks records before anything else looks at them. Small calls come through here too, so the usual case is a few
 * additions an array; only arrays whose extents meet are looked at closely. */
#include "check.h"
#include "convert.h"

#include <math.h>
#include <stdalign.h>

enum {
    WRITTEN_COUNT = 12, /* out, the row values, ten statistics */
    READ_COUNT = 9,
    SEARCH_STEPS = 10000, /* more than arrays of one parent take */
};

/* Above them, sizes of scratch and numbers of chunks might overflow; nobody lives to see as many. */
static const int64_t MOST_CLASSES = (int64_t)1 << 48, MOST_ROWS = (int64_t)1 << 56;

/* Places in a list are kept where masses will be, in 32 bits. */
static const int64_t MOST_LISTED = INT32_MAX;

bool is_element_wise(const fastce_problem *q) { return q->kind >= FASTCE_BINARY_LOGITS; }

static bool is_aligned(const void *p, size_t alignment) { return (uintptr_t)p % alignment == 0; }

static fastce_status check_array(const fastce_array *a, bool floating, bool required, int n_axes) {
    if ((unsigned)a->dtype >= FASTCE_DTYPE_COUNT) return FASTCE_BAD_DTYPE; /* sizes are asked for without data, too */
    if (!a->data) return required ? FASTCE_BAD_POINTER : FASTCE_OK;
    if (floating && !dtype_is_floating(a->dtype)) return FASTCE_BAD_DTYPE;
    if (n_axes > 0 && (!a->strides || !is_aligned(a->strides, alignof(ptrdiff_t)))) return FASTCE_BAD_POINTER;
    return FASTCE_OK;
}

static fastce_status check_kind(const fastce_problem *q) {
    bool divergence = q->kind == FASTCE_KL || q->kind == FASTCE_JS, teacher = q->kind == FASTCE_TEACHER;
    if ((unsigned)q->kind >= FASTCE_KIND_COUNT) return FASTCE_BAD_ARGUMENT;
    if (q->kind == FASTCE_LOGITS) {
        const bool given = q->softcap != 0 || (q->temperature != 0 && q->temperature != 1);
        const bool valid = q->temperature >= 0 && isfinite(q->temperature) && q->softcap >= 0 && isfinite(q->softcap);
        const bool focal = q->gamma != 0, labels_alone = q->target_kind == FASTCE_LABELS && !q->class_vector;
        const bool fits = labels_alone && q->z_loss == 0 && !given && q->gamma > 0 && isfinite(q->gamma);
        if (given && !valid) return FASTCE_BAD_ARGUMENT;
        if (focal && !fits) return FASTCE_BAD_ARGUMENT;
        if ((given || focal) && q->output != FASTCE_LOSS && q->output != FASTCE_GRAD) return FASTCE_BAD_ARGUMENT;
        return q->factor.data || q->positive_weight.data ? FASTCE_BAD_ARGUMENT : FASTCE_OK;
    }
    if (q->target_kind == FASTCE_SPARSE) return FASTCE_BAD_ARGUMENT;
    if (q->output != FASTCE_LOSS && (q->output != FASTCE_GRAD || divergence)) return FASTCE_BAD_ARGUMENT;
    if (is_element_wise(q) && q->n_classes != 1) return FASTCE_BAD_SIZE;
    if (teacher && !(q->temperature > 0 && isfinite(q->temperature))) return FASTCE_BAD_ARGUMENT;
    bool dense = q->target_kind == FASTCE_DENSE;
    if (!dense && (is_element_wise(q) || divergence || teacher)) return FASTCE_BAD_ARGUMENT;
    return teacher && !dtype_is_floating(q->target.dtype) ? FASTCE_BAD_DTYPE : FASTCE_OK;
}

/* Where the type is fixed, the compiler may rely on its alignment. */
static bool pointers_are_aligned(const fastce_problem *q) {
    size_t real = q->logits.dtype == FASTCE_F64 ? alignof(double) : alignof(float);
    bool right = is_aligned(q->row_values, real) && is_aligned(q->class_weight, alignof(double)) &&
                 is_aligned(q->class_vector, alignof(double));
    const fastce_statistics *s = q->statistics;
    if (q->output != FASTCE_STATISTICS || !s) return right;
    if (!is_aligned(s, alignof(fastce_statistics))) return false;
    return right && is_aligned(s->lse, real) && is_aligned(s->loss, real) && is_aligned(s->entropy, real) &&
           is_aligned(s->target_probability, real) && is_aligned(s->margin, real) && is_aligned(s->maximum, real) &&
           is_aligned(s->rest, real) && is_aligned(s->argmax, alignof(int64_t)) &&
           is_aligned(s->rank, alignof(int64_t));
}

static int64_t count_rows(const fastce_problem *q) {
    int64_t n = 1;
    bool fits = true, empty = false;
    for (int i = 0; i < q->n_axes; i++) {
        if (q->shape[i] < 0) return -1;
        empty |= q->shape[i] == 0;
        fits = fits && !__builtin_mul_overflow(n, q->shape[i], &n);
    }
    return empty ? 0 : fits ? n : -1;
}

/* n_rows is -1 where a length is negative or 64 bits do not hold the product. */
static fastce_status check_fields(const fastce_problem *q, int64_t *n_rows) {
    if (!q || !is_aligned(q, alignof(fastce_problem))) return FASTCE_BAD_POINTER;
    bool statistics = q->output == FASTCE_STATISTICS;
    bool writes = q->output != FASTCE_LOSS && q->output != FASTCE_LSE && !statistics;
    bool has_target = q->target_kind != FASTCE_NO_TARGET;
    bool wants_target = q->output == FASTCE_LOSS || q->output == FASTCE_GRAD || (statistics && has_target);
    if ((unsigned)q->output >= FASTCE_OUTPUT_COUNT || (unsigned)q->target_kind >= FASTCE_TARGET_COUNT)
        return FASTCE_BAD_ARGUMENT;
    if (q->n_axes < 0 || q->n_axes > MAX_AXES || q->n_classes < 0 || q->n_classes > MOST_CLASSES)
        return FASTCE_BAD_SIZE;
    if (q->out.data && !writes) return FASTCE_BAD_ARGUMENT; /* kernels write what is there */
    const bool sparse = q->target_kind == FASTCE_SPARSE, masses = sparse || q->target_kind == FASTCE_DENSE;
    if (has_target != wants_target || (statistics && masses)) return FASTCE_BAD_ARGUMENT;
    if (sparse && (q->n_listed < 0 || q->n_listed > MOST_LISTED)) return FASTCE_BAD_SIZE;
    if (q->n_axes > 0 && (!q->shape || !is_aligned(q->shape, alignof(int64_t)))) return FASTCE_BAD_POINTER;
    *n_rows = count_rows(q);
    bool some = *n_rows != 0; /* without rows nothing is needed */
    if (some && ((q->output == FASTCE_LSE && !q->row_values) || (statistics && !q->statistics)))
        return FASTCE_BAD_POINTER;

    const struct {
        const fastce_array *array;
        bool floating, required;
    } arrays[] = {{&q->logits, true, true},
                  {&q->target, false, has_target},
                  {&q->sample_weight, false, false},
                  {&q->out, true, writes},
                  {&q->factor, false, false},
                  {&q->grad_output, false, false},
                  {&q->positive_weight, false, false},
                  {sparse ? &q->probabilities : &q->target, false, has_target}};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        fastce_status status = check_array(arrays[i].array, arrays[i].floating, arrays[i].required && some, q->n_axes);
        if (status != FASTCE_OK) return status;
    }
    bool label_dtype = q->target.dtype >= FASTCE_I8 && q->target.dtype <= FASTCE_U64;
    if ((q->target_kind == FASTCE_LABELS || sparse) && !label_dtype) return FASTCE_BAD_DTYPE;
    fastce_status status = check_kind(q);
    if (status != FASTCE_OK) return status;
    return pointers_are_aligned(q) ? FASTCE_OK : FASTCE_BAD_POINTER;
}

/* --- where an array lies -------------------------------------------------------------------------------------------- */

/* The bytes from begin to end, of which an array takes the elements at its strides. */
typedef struct extent {
    uintptr_t begin, end;
    const fastce_array *array; /* NULL where it takes them all */
    int64_t n_classes;         /* the length of its class axis, 1 where it has none */
} extent;

static bool meet(const extent *a, const extent *b) { return a->begin < b->end && b->begin < a->end; }

static bool stretch(int64_t length, ptrdiff_t stride, ptrdiff_t *low, ptrdiff_t *high) {
    ptrdiff_t reach;
    if (__builtin_mul_overflow(length - 1, stride, &reach)) return false;
    return reach < 0 ? !__builtin_add_overflow(*low, reach, low) : !__builtin_add_overflow(*high, reach, high);
}

static bool find_extent(const fastce_problem *q, const fastce_array *a, int64_t n_classes, extent *e) {
    ptrdiff_t low = 0, high = dtype_size(a->dtype);
    for (int i = 0; i < q->n_axes; i++)
        if (!stretch(q->shape[i], a->strides[i], &low, &high)) return false;
    if (n_classes > 1 && !stretch(n_classes, a->class_stride, &low, &high)) return false;
    uintptr_t data = (uintptr_t)a->data;
    *e = (extent){.array = a, .n_classes = n_classes};
    return !__builtin_sub_overflow(data, 0 - (uintptr_t)low, &e->begin) &&
           !__builtin_add_overflow(data, (uintptr_t)high, &e->end);
}

static bool find_run(const void *data, int64_t count, size_t size, extent *e) {
    ptrdiff_t bytes; /* no object has more bytes than its type counts */
    *e = (extent){.begin = (uintptr_t)data};
    return !__builtin_mul_overflow(count, size, &bytes) && !__builtin_add_overflow(e->begin, bytes, &e->end);
}

/* The sums of 0 to length - 1 times stride, over the terms. Strides are positive and fall, no two are equal. */
typedef struct sums {
    int count;
    int64_t stride[2 * MAX_AXES + 2], length[2 * MAX_AXES + 2];
    int64_t rest[2 * MAX_AXES + 3]; /* the largest sum of the terms from one on */
} sums;

/* Adds an axis; both arrays may step alike. Returns false where the numbers become too large to tell. */
static bool add_term(sums *s, int64_t length, ptrdiff_t stride) {
    if (length < 2 || stride == 0) return true;
    if (stride == PTRDIFF_MIN) return false;
    int64_t step = stride < 0 ? -stride : stride;
    int i = s->count;
    for (; i > 0 && s->stride[i - 1] < step; i--) {
    }
    if (i > 0 && s->stride[i - 1] == step)
        return !__builtin_add_overflow(s->length[i - 1], length - 1, &s->length[i - 1]);
    for (int j = s->count++; j > i; j--) {
        s->stride[j] = s->stride[j - 1];
        s->length[j] = s->length[j - 1];
    }
    s->stride[i] = step;
    s->length[i] = length;
    return true;
}

static bool add_terms(sums *s, const fastce_problem *q, const extent *e) {
    if (!e->array) return add_term(s, (int64_t)(e->end - e->begin), 1);
    for (int i = 0; i < q->n_axes; i++)
        if (!add_term(s, q->shape[i], e->array->strides[i])) return false;
    return add_term(s, e->n_classes, e->array->class_stride);
}

static bool find_rests(sums *s) {
    s->rest[s->count] = 0;
    for (int i = s->count - 1; i >= 0; i--) {
        int64_t most;
        if (__builtin_mul_overflow(s->length[i] - 1, s->stride[i], &most) ||
            __builtin_add_overflow(most, s->rest[i + 1], &s->rest[i]))
            return false;
    }
    return true;
}

/* Whether a sum of the terms from i on lies in [low, high]; true also where that takes too long to tell. */
static bool reaches(const sums *s, int i, int64_t low, int64_t high, int *steps) {
    if (high < 0 || low > s->rest[i]) return false;
    if (low <= 0 || --*steps < 0) return true;
    int64_t stride = s->stride[i], last = high / stride;
    int64_t first = low > s->rest[i + 1] ? (low - s->rest[i + 1] + stride - 1) / stride : 0;
    if (last > s->length[i] - 1) last = s->length[i] - 1;
    for (int64_t k = first; k <= last; k++)
        if (reaches(s, i + 1, low - k * stride, high - k * stride, steps)) return true;
    return false;
}

static int64_t element_size(const extent *e) { return e->array ? dtype_size(e->array->dtype) : 1; }

/* Whether two arrays have a byte in common. Counted from the beginnings, one element lies at a sum of a's terms and the
 * other at b's; turned around, b's terms join those of a. */
static bool share_memory(const fastce_problem *q, const extent *a, const extent *b) {
    if (!meet(a, b)) return false;
    sums s = {.count = 0};
    if (!add_terms(&s, q, a) || !add_terms(&s, q, b) || !find_rests(&s)) return true;
    int64_t size_a = element_size(a), size_b = element_size(b), last_b = (int64_t)(b->end - b->begin) - size_b;
    int64_t apart = (int64_t)(b->begin - a->begin); /* they meet, so this is small */
    int steps = SEARCH_STEPS;
    return reaches(&s, 0, apart + last_b - size_a + 1, apart + last_b + size_b - 1, &steps);
}

/* Whether elements of one array may share memory; never so for what slices and transposes of a plain one give. */
static bool may_overlap_itself(const fastce_problem *q, const fastce_array *a) {
    sums s = {.count = 0};
    int64_t length = q->n_classes, terms = length > 1;
    if (length > 1 && a->class_stride == 0) return true;
    for (int i = 0; i < q->n_axes; i++) {
        if (q->shape[i] > 1 && a->strides[i] == 0) return true;
        terms += q->shape[i] > 1;
        if (!add_term(&s, q->shape[i], a->strides[i])) return true;
    }
    if (!add_term(&s, length, a->class_stride) || s.count != terms) return true;
    int64_t reach = dtype_size(a->dtype);
    for (int i = s.count - 1; i >= 0; i--) {
        if (s.stride[i] < reach) return true;
        reach += s.stride[i] * (s.length[i] - 1);
    }
    return false;
}

static bool is_in_place(const fastce_problem *q) {
    const fastce_array *x = &q->logits, *out = &q->out;
    if (x->data != out->data || x->dtype != out->dtype || !x->byte_swapped != !out->byte_swapped) return false;
    for (int i = 0; i < q->n_axes; i++)
        if (q->shape[i] > 1 && x->strides[i] != out->strides[i]) return false;
    return q->n_classes < 2 || x->class_stride == out->class_stride;
}

/* The extents of what is written (out first, where there is one) and of what is read (the logits first). */
typedef struct extents {
    extent written[WRITTEN_COUNT], read[READ_COUNT];
    int written_count, read_count;
    bool fit;
} extents;

static void add_read(extents *found, const fastce_problem *q, const fastce_array *a, int64_t n_classes) {
    if (a->data && n_classes > 0)
        found->fit = found->fit && find_extent(q, a, n_classes, &found->read[found->read_count++]);
}

static void add_read_run(extents *found, const double *data, int64_t count) {
    if (data) found->fit = found->fit && find_run(data, count, sizeof *data, &found->read[found->read_count++]);
}

static void add_written_run(extents *found, const void *data, int64_t count, size_t size) {
    if (data) found->fit = found->fit && find_run(data, count, size, &found->written[found->written_count++]);
}

static void find_extents(const fastce_problem *q, int64_t n_rows, extents *found) {
    bool has_out = q->output == FASTCE_GRAD || q->output == FASTCE_SOFTMAX || q->output == FASTCE_LOG_SOFTMAX;
    size_t real = q->logits.dtype == FASTCE_F64 ? 8 : 4;
    found->written_count = found->read_count = 0;
    found->fit = true;
    if (has_out) found->fit = find_extent(q, &q->out, q->n_classes, &found->written[found->written_count++]);
    add_written_run(found, q->row_values, n_rows, real);
    if (q->output == FASTCE_STATISTICS) {
        const fastce_statistics *s = q->statistics;
        add_written_run(found, s->lse, n_rows, real);
        add_written_run(found, s->loss, n_rows, real);
        add_written_run(found, s->entropy, n_rows, real);
        add_written_run(found, s->target_probability, n_rows, real);
        add_written_run(found, s->margin, n_rows, real);
        add_written_run(found, s->argmax, n_rows, sizeof *s->argmax);
        add_written_run(found, s->rank, n_rows, sizeof *s->rank);
        add_written_run(found, s->correct, n_rows, sizeof *s->correct);
        add_written_run(found, s->maximum, n_rows, real);
        add_written_run(found, s->rest, n_rows, real);
    }
    const bool sparse = q->target_kind == FASTCE_SPARSE;
    add_read(found, q, &q->logits, q->n_classes);
    add_read(found, q, &q->target, sparse ? q->n_listed : q->target_kind == FASTCE_DENSE ? q->n_classes : 1);
    if (sparse) add_read(found, q, &q->probabilities, q->n_listed);
    add_read(found, q, &q->sample_weight, 1);
    add_read(found, q, &q->grad_output, 1);
    add_read(found, q, &q->factor, 1);
    add_read(found, q, &q->positive_weight, 1);
    add_read_run(found, q->class_weight, q->n_classes);
    add_read_run(found, q->class_vector, q->n_classes);
}

static fastce_status check_memory(const fastce_problem *q, int64_t n_rows) {
    extents found;
    find_extents(q, n_rows, &found);
    if (!found.fit) return FASTCE_BAD_STRIDE;
    for (int i = 0; i < found.written_count; i++) {
        const extent *w = &found.written[i];
        if (w->array && may_overlap_itself(q, w->array)) return FASTCE_BAD_STRIDE;
        for (int j = 0; j < found.read_count; j++) {
            const extent *r = &found.read[j];
            if (w->array && r->array == &q->logits && is_in_place(q)) continue;
            if (share_memory(q, w, r)) return FASTCE_BAD_OVERLAP;
        }
        for (int j = 0; j < i; j++)
            if (share_memory(q, w, &found.written[j])) return FASTCE_BAD_OVERLAP;
    }
    return FASTCE_OK;
}

fastce_status check_problem(const fastce_problem *q, int64_t *n_rows) {
    fastce_status status = check_fields(q, n_rows);
    if (status != FASTCE_OK || *n_rows == 0) return status;
    return *n_rows < 0 || *n_rows > MOST_ROWS || q->n_classes == 0 ? FASTCE_BAD_SIZE : check_memory(q, *n_rows);
}

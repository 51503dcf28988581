/* A problem as plain numbers, and the same problem as a fastce_problem in any dtype, layout and byte order. Every array
 * lies against an unmapped page, so that a kernel that reads or writes beyond it dies, and what lies between and before
 * its elements is compared afterwards. */
#ifndef ARRAYS_H
#define ARRAYS_H

#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */

#include "../../src_c/convert.h"
#include "check.h"

#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

static inline void *allocate(int64_t count, size_t size) {
    void *p = calloc((size_t)(count > 0 ? count : 1), size);
    if (!p) {
        puts("out of memory");
        exit(2);
    }
    return p;
}

/* --- a problem as numbers ------------------------------------------------------------------------------------------- */

/* Rows in C order; NULL for what is absent. */
typedef struct inputs {
    int64_t shape[2], n_rows, n_classes;
    double *x;
    fastce_target target_kind;
    fastce_dtype target_dtype;
    int64_t *labels;
    double *dense;                  /* of a sparse target, what its lists stand for */
    double *listed, *probabilities; /* n_listed a row */
    int64_t n_listed;
    bool spread_missing;
    double *sample_weight, *grad_output, *class_weight, *class_vector;
    double target_scale, z_loss, grad_scale;
    double temperature, softcap, gamma; /* 0 where there is none */
    bool has_ignore_index;
    int64_t ignore_index;
} inputs;

static inline inputs new_inputs(int64_t outer, int64_t inner, int64_t n_classes) {
    return (inputs){
        .shape = {outer, inner},
        .n_rows = outer * inner,
        .n_classes = n_classes,
        .x = allocate(outer * inner * n_classes, sizeof(double)),
        .target_scale = 1,
        .grad_scale = 1,
    };
}

static inline void free_inputs(inputs *in) {
    free(in->x);
    free(in->labels);
    free(in->dense);
    free(in->listed);
    free(in->probabilities);
    free(in->sample_weight);
    free(in->grad_output);
    free(in->class_weight);
    free(in->class_vector);
}

/* An integer below n, the same sequence in every run. */
static inline int64_t random_below(int64_t n) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (int64_t)((state >> 11) % (uint64_t)n);
}

/* --- where an array lies -------------------------------------------------------------------------------------------- */

/* order names the axes a, b and k (the classes) from the slowest to the fastest; a capital letter's stride is negative. */
typedef struct layout {
    const char *order;
    int gap;       /* elements left out between neighbours */
    int shift;     /* bytes between the array and its page's edge */
    bool at_start; /* of the page, not at its end */
    bool swapped;
} layout;

typedef struct view {
    fastce_array array;
    ptrdiff_t strides[2];
    int64_t inner;
    char *span; /* all bytes the array reaches over */
    size_t span_size;
} view;

typedef struct pages {
    char *begin, *end;
} pages;

static inline pages new_pages(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (size_t)24 << 20;
    char *p = mmap(NULL, size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + page, size, PROT_READ | PROT_WRITE)) {
        puts("no memory for guarded pages");
        exit(2);
    }
    return (pages){p + page, p + page + size};
}

enum {
    PAGES_LOGITS,
    PAGES_TARGET,
    PAGES_WEIGHT,
    PAGES_OUT,
    PAGES_GRAD_OUTPUT,
    PAGES_VALUES,
    PAGES_BESIDE,
    PAGES_COUNT
};

static inline pages pages_of(int which) {
    static pages made[PAGES_COUNT];
    if (!made[which].begin) made[which] = new_pages();
    return made[which];
}

static inline view lay_out(int which, layout l, const int64_t shape[2], int64_t n_classes, fastce_dtype dtype) {
    ptrdiff_t size = dtype_size(dtype), stride = size * (1 + l.gap), reach = size, first = 0;
    view v = {.array = {.dtype = dtype, .byte_swapped = l.swapped}, .inner = shape[1]};
    for (int i = 2; i >= 0; i--) {
        char axis = l.order[i];
        bool negative = axis < 'a', is_class = axis == 'k' || axis == 'K';
        ptrdiff_t length = is_class ? n_classes : shape[axis != 'a' && axis != 'A'];
        ptrdiff_t *to = is_class ? &v.array.class_stride : &v.strides[axis != 'a' && axis != 'A'];
        if (is_class && n_classes == 0) continue;
        *to = negative ? -stride : stride;
        if (negative) first += stride * (length - 1);
        reach += stride * (length - 1);
        stride *= length;
    }
    pages p = pages_of(which);
    if (reach + l.shift > p.end - p.begin) {
        puts("the guarded pages are too small");
        exit(2);
    }
    v.span = l.at_start ? p.begin + l.shift : p.end - l.shift - reach;
    v.span_size = (size_t)reach;
    v.array.data = v.span + first;
    return v;
}

static inline char *element(const view *v, int64_t row, int64_t k) {
    return (char *)v->array.data + row / v->inner * v->strides[0] + row % v->inner * v->strides[1] +
           k * v->array.class_stride;
}

static inline void put_integer(char *p, int64_t value, fastce_dtype dtype, bool swapped) {
    int size = dtype_size(dtype);
    uint8_t one = (uint8_t)value;
    uint16_t two = (uint16_t)value;
    uint32_t four = (uint32_t)value;
    char native[8];
    memcpy(native, &value, 8);
    if (size == 1) memcpy(native, &one, 1);
    if (size == 2) memcpy(native, &two, 2);
    if (size == 4) memcpy(native, &four, 4);
    for (int i = 0; i < size; i++) p[i] = native[swapped ? size - 1 - i : i];
}

/* The n numbers of a row; n is 1 where the array has no class axis. */
static inline void put_row(const view *v, int64_t row, const double *x, int64_t n) {
    fastce_dtype dtype = v->array.dtype;
    bool swapped = v->array.byte_swapped;
    char *p = element(v, row, 0);
    for (int64_t k = 0; k < n; k++, p += v->array.class_stride) {
        if (dtype_is_floating(dtype))
            store_floating(p, x[k], dtype, swapped);
        else
            put_integer(p, (int64_t)x[k], dtype, swapped);
    }
}

static inline void get_row(const view *v, int64_t row, double *x, int64_t n) {
    const char *p = element(v, row, 0);
    for (int64_t k = 0; k < n; k++)
        x[k] = load_number(p + k * v->array.class_stride, v->array.dtype, v->array.byte_swapped);
}

/* --- a call --------------------------------------------------------------------------------------------------------- */

typedef struct way {
    const char *isa;
    fastce_dtype dtype, out_dtype;
    layout logits, out; /* the other arrays lie as the logits do */
    bool in_place;
    int num_threads;
} way;

typedef struct call {
    fastce_problem problem;
    view logits, target, probabilities, sample_weight, out, grad_output;
    char *values;
    const inputs *in;
} call;

enum { UNTOUCHED = 0xa5 };

static inline bool has_out(fastce_output output) { return output != FASTCE_LOSS && output != FASTCE_LSE; }

static inline void attach(fastce_array *to, view *from) {
    *to = from->array;
    to->strides = from->strides;
}

/* c must stay where it is: the problem points into it. */
static inline void prepare(call *c, const inputs *in, fastce_output output, const way *w) {
    int64_t n = in->n_rows, classes = in->n_classes;
    bool takes_target = output == FASTCE_LOSS || output == FASTCE_GRAD;
    size_t value_size = w->dtype == FASTCE_F64 ? 8 : 4;
    memset(c, 0, sizeof *c);
    c->in = in;
    c->values = pages_of(PAGES_VALUES).end - (size_t)n * value_size;
    memset(c->values, UNTOUCHED, (size_t)n * value_size);
    c->problem = (fastce_problem){
        .output = output,
        .target_kind = takes_target ? in->target_kind : FASTCE_NO_TARGET,
        .n_axes = 2,
        .shape = in->shape,
        .n_classes = classes,
        .target_scale = in->target_scale,
        .grad_scale = in->grad_scale,
        .row_values = has_out(output) && output != FASTCE_GRAD ? NULL : c->values,
    };
    c->logits = lay_out(PAGES_LOGITS, w->logits, in->shape, classes, w->dtype);
    memset(c->logits.span, UNTOUCHED, c->logits.span_size);
    for (int64_t i = 0; i < n; i++) put_row(&c->logits, i, in->x + i * classes, classes);
    attach(&c->problem.logits, &c->logits);
    if (has_out(output)) {
        c->out = c->logits;
        if (!w->in_place) {
            c->out = lay_out(PAGES_OUT, w->out, in->shape, classes, w->out_dtype);
            memset(c->out.span, UNTOUCHED, c->out.span_size);
        }
        attach(&c->problem.out, &c->out);
    }
    if (in->grad_output && (output == FASTCE_GRAD || output == FASTCE_SOFTMAX)) {
        c->grad_output = lay_out(PAGES_GRAD_OUTPUT, w->logits, in->shape, 0, FASTCE_F64);
        for (int64_t i = 0; i < n; i++) put_row(&c->grad_output, i, in->grad_output + i, 1);
        attach(&c->problem.grad_output, &c->grad_output);
    }
    if (!takes_target) return;

    c->problem.class_weight = in->class_weight;
    c->problem.class_vector = in->class_vector;
    c->problem.z_loss = in->z_loss;
    c->problem.temperature = in->temperature;
    c->problem.softcap = in->softcap;
    c->problem.gamma = in->gamma;
    c->problem.has_ignore_index = in->has_ignore_index;
    c->problem.ignore_index = in->ignore_index;
    if (in->labels) {
        c->target = lay_out(PAGES_TARGET, w->logits, in->shape, 0, in->target_dtype);
        for (int64_t i = 0; i < n; i++)
            put_integer(element(&c->target, i, 0), in->labels[i], in->target_dtype, w->logits.swapped);
    } else if (in->listed) {
        c->target = lay_out(PAGES_TARGET, w->logits, in->shape, in->n_listed, in->target_dtype);
        c->probabilities = lay_out(PAGES_BESIDE, w->logits, in->shape, in->n_listed, FASTCE_F32);
        for (int64_t i = 0; i < n; i++) put_row(&c->target, i, in->listed + i * in->n_listed, in->n_listed);
        for (int64_t i = 0; i < n; i++)
            put_row(&c->probabilities, i, in->probabilities + i * in->n_listed, in->n_listed);
        attach(&c->problem.probabilities, &c->probabilities);
        c->problem.n_listed = in->n_listed;
        c->problem.spread_missing = in->spread_missing;
    } else {
        c->target = lay_out(PAGES_TARGET, w->logits, in->shape, classes, in->target_dtype);
        for (int64_t i = 0; i < n; i++) put_row(&c->target, i, in->dense + i * classes, classes);
    }
    attach(&c->problem.target, &c->target);
    if (in->sample_weight) {
        c->sample_weight = lay_out(PAGES_WEIGHT, w->logits, in->shape, 0, FASTCE_F32);
        for (int64_t i = 0; i < n; i++) put_row(&c->sample_weight, i, in->sample_weight + i, 1);
        attach(&c->problem.sample_weight, &c->sample_weight);
    }
}

/* What a call left, in C order; all dtypes fit in double without rounding. */
typedef struct outputs {
    fastce_status status;
    fastce_totals totals;
    double *values, *out;
    bool stayed_inside; /* no other byte was written */
} outputs;

static inline void free_outputs(outputs *o) {
    free(o->values);
    free(o->out);
}

static inline outputs run(const inputs *in, fastce_output output, const way *w) {
    call c;
    prepare(&c, in, output, w);
    char *x_before = allocate((int64_t)c.logits.span_size, 1), *out_before = allocate((int64_t)c.out.span_size, 1);
    memcpy(x_before, c.logits.span, c.logits.span_size);
    if (has_out(output)) memcpy(out_before, c.out.span, c.out.span_size);

    outputs o = {
        .values = allocate(in->n_rows, sizeof(double)),
        .out = allocate(has_out(output) ? in->n_rows * in->n_classes : 0, sizeof(double)),
    };
    o.status = fastce_run(&c.problem, w->isa, w->num_threads, &o.totals);
    fastce_dtype value_dtype = w->dtype == FASTCE_F64 ? FASTCE_F64 : FASTCE_F32;
    if (c.problem.row_values)
        for (int64_t i = 0; i < in->n_rows; i++)
            o.values[i] = load_number(c.values + i * dtype_size(value_dtype), value_dtype, false);
    if (has_out(output)) {
        size_t size = (size_t)dtype_size(c.out.array.dtype);
        for (int64_t i = 0; i < in->n_rows; i++) {
            char *p = element(&c.out, i, 0);
            get_row(&c.out, i, o.out + i * in->n_classes, in->n_classes);
            for (int64_t k = 0; k < in->n_classes; k++, p += c.out.array.class_stride)
                memcpy(p, out_before + (p - c.out.span), size);
        }
    }
    o.stayed_inside = !memcmp(x_before, c.logits.span, c.logits.span_size) &&
                      (!has_out(output) || !memcmp(out_before, c.out.span, c.out.span_size));
    free(x_before);
    free(out_before);
    return o;
}

/* Whether two numbers have the same bits; any NaN is as good as another. */
static inline bool same(double a, double b) { return (a != a && b != b) || (a == b && !signbit(a) == !signbit(b)); }

static inline bool all_same(const double *a, const double *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!same(a[i], b[i])) return false;
    return true;
}

static inline bool same_outputs(const inputs *in, fastce_output output, const outputs *a, const outputs *b) {
    return a->status == b->status && same(a->totals.loss, b->totals.loss) && same(a->totals.weight, b->totals.weight) &&
           all_same(a->values, b->values, in->n_rows) &&
           (!has_out(output) || all_same(a->out, b->out, in->n_rows * in->n_classes));
}

/* --- layouts -------------------------------------------------------------------------------------------------------- */

static const layout rows_layout = {.order = "abk"}, image_layout = {.order = "akb"};

static inline way way_of(const char *isa, fastce_dtype dtype, layout l) {
    return (way){.isa = isa, .dtype = dtype, .out_dtype = dtype, .logits = l, .out = l, .num_threads = 1};
}

#endif

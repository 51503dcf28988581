/* From flat words to the record of fastce.h: what the Python front end checks and prepares, and what it makes of the
 * totals, for callers without Python. No kernels; messages are the caller's. */
#include "flat_call.h"
#include "convert.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_AXES = 64 };

typedef struct array {
    char *data; /* NULL where there is none */
    fastce_dtype dtype;
    int n_axes;
    const int64_t *shape;
    const int64_t *strides;
} array;

typedef struct flat {
    fastce_output output;
    int64_t reduction, flags, axis;
    int64_t ignore_index;
    double label_smoothing, z_loss, denominator, base, grad_output;
    array logits, target, weight, sample_weight, row_grad, out, values;
    int64_t n_classes, n_rows;
} flat;

static const int64_t *read_array(const int64_t *word, array *a) {
    *a = (array){0};
    int64_t dtype = *word++;
    if (dtype < 0) return word;
    a->dtype = (fastce_dtype)dtype;
    a->data = (char *)(uintptr_t)*word++;
    a->n_axes = (int)*word++;
    a->shape = word;
    a->strides = word + a->n_axes;
    return a->strides + a->n_axes;
}

static double real_of(int64_t word) {
    double x;
    memcpy(&x, &word, sizeof x);
    return x;
}

static void read_words(const int64_t *word, flat *f) {
    f->output = (fastce_output)word[1];
    f->reduction = word[2];
    f->flags = word[3];
    f->axis = word[4];
    f->ignore_index = word[5];
    f->label_smoothing = real_of(word[6]);
    f->z_loss = real_of(word[7]);
    f->denominator = real_of(word[8]);
    f->base = real_of(word[9]);
    f->grad_output = real_of(word[10]);
    word += 11;
    array *arrays[] = {&f->logits, &f->target, &f->weight, &f->sample_weight, &f->row_grad, &f->out, &f->values};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) word = read_array(word, arrays[i]);
}

/* Whether an array has the shape of the logits, or that without the class axis. */
static bool fits(const array *a, const flat *f) {
    const array *x = &f->logits;
    bool has_classes = a->n_axes == x->n_axes;
    for (int i = 0; i < x->n_axes; i++) {
        if (!has_classes && i == f->axis) continue;
        if (a->shape[i - (!has_classes && i > f->axis)] != x->shape[i]) return false;
    }
    return true;
}

/* The first and the last byte that elements lie in, for arrays that have any. */
static void reach(const array *a, const char **first, const char **last) {
    const char *low = a->data, *high = a->data + dtype_size(a->dtype) - 1;
    for (int i = 0; i < a->n_axes; i++) {
        int64_t far = a->strides[i] * (a->shape[i] - 1);
        if (far < 0) low += far;
        if (far > 0) high += far;
    }
    *first = low;
    *last = high;
}

static bool is_empty(const array *a) {
    for (int i = 0; i < a->n_axes; i++)
        if (a->shape[i] == 0) return true;
    return false;
}

static bool overlap(const array *a, const array *b) {
    if (!b->data || is_empty(a) || is_empty(b)) return false;
    const char *first[2], *last[2];
    reach(a, &first[0], &last[0]);
    reach(b, &first[1], &last[1]);
    return first[0] <= last[1] && first[1] <= last[0];
}

static flat_code refuse(flat_result *result, flat_code code, double number) {
    result->number = number;
    return code;
}

/* Everything but the rows, in the order of the Python front end. */
static flat_code check(flat *f, flat_result *result) {
    const array *x = &f->logits;
    if (f->axis < -x->n_axes || f->axis >= x->n_axes) return FLAT_BAD_AXIS;
    if (f->axis < 0) f->axis += x->n_axes;
    result->axis = f->axis;
    f->n_classes = x->shape[f->axis];
    f->n_rows = 1;
    for (int i = 0; i < x->n_axes; i++)
        if (i != f->axis) f->n_rows *= x->shape[i];
    if (f->n_classes == 0 && f->n_rows) return FLAT_NO_CLASSES;

    if (!(f->label_smoothing >= 0 && f->label_smoothing <= 1))
        return refuse(result, FLAT_BAD_SMOOTHING, f->label_smoothing);
    if (!(f->z_loss >= 0 && isfinite(f->z_loss))) return refuse(result, FLAT_BAD_Z_LOSS, f->z_loss);
    if (f->flags & FLAT_HAS_DENOMINATOR && !(f->denominator > 0 && isfinite(f->denominator)))
        return refuse(result, FLAT_BAD_DENOMINATOR, f->denominator);
    if (f->flags & FLAT_HAS_BASE && !(f->base > 1 && isfinite(f->base))) return refuse(result, FLAT_BAD_BASE, f->base);

    if (f->target.data && !fits(&f->target, f)) return FLAT_TARGET_SHAPE;
    const array *w = &f->weight;
    if (w->data && w->shape[0] != f->n_classes) return FLAT_WEIGHT_SHAPE;
    for (int64_t k = 0; w->data && k < f->n_classes; k++) {
        double weight = load_number(w->data + k * w->strides[0], w->dtype, false);
        result->at = k;
        if (!(weight >= 0 && isfinite(weight))) return refuse(result, FLAT_BAD_WEIGHT, weight);
    }
    if (f->sample_weight.data && !fits(&f->sample_weight, f)) return FLAT_SAMPLE_WEIGHT_SHAPE;
    if (f->row_grad.data && !fits(&f->row_grad, f)) return FLAT_GRAD_OUTPUT_SHAPE;
    if (!f->out.data) return FLAT_OK;
    if (!fits(&f->out, f)) return FLAT_OUT_SHAPE;
    return overlap(&f->out, w) ? FLAT_OUT_OVERLAPS_INPUT : FLAT_OK; /* the core sees a copy of the weights */
}

/* An array as the record wants it: the class axis apart, the strides of the other axes in room. */
static void set_array(fastce_array *record, const array *a, const flat *f, ptrdiff_t *room) {
    if (!a->data) return;
    bool has_classes = a->n_axes == f->logits.n_axes;
    record->data = a->data;
    record->dtype = a->dtype;
    record->strides = room;
    for (int i = 0; i < a->n_axes; i++) {
        if (has_classes && i == f->axis)
            record->class_stride = (ptrdiff_t)a->strides[i];
        else
            *room++ = (ptrdiff_t)a->strides[i];
    }
}

/* ignore_index is compared by value: where the labels' dtype cannot hold it, no label equals it. */
static bool can_hold(fastce_dtype dtype, const flat *f) {
    bool is_unsigned = dtype >= FASTCE_U8, beyond = f->flags & FLAT_UNSIGNED_IGNORE_INDEX && f->ignore_index < 0;
    int bits = 8 * dtype_size(dtype);
    if (beyond) return dtype == FASTCE_U64;
    if (is_unsigned) return f->ignore_index >= 0 && (bits == 64 || f->ignore_index < (int64_t)1 << bits);
    if (bits == 64) return true;
    return f->ignore_index >= -((int64_t)1 << (bits - 1)) && f->ignore_index < (int64_t)1 << (bits - 1);
}

/* Class weights as doubles and the vector that smoothing makes, in room for two of them. */
static void set_class_arrays(fastce_problem *q, const flat *f, double *room) {
    const array *w = &f->weight;
    int64_t n = f->n_classes;
    if (w->data) {
        for (int64_t k = 0; k < n; k++) room[k] = load_number(w->data + k * w->strides[0], w->dtype, false);
        q->class_weight = room;
    }
    if (f->label_smoothing > 0) {
        double *vector = room + n, each = f->label_smoothing / (double)n;
        for (int64_t k = 0; k < n; k++) vector[k] = w->data ? each * room[k] : each;
        q->class_vector = vector;
    }
}

/* The element of a row in an array without a class axis. */
static const char *element(const array *a, int64_t row) {
    const char *p = a->data;
    for (int i = a->n_axes - 1; i >= 0; i--) {
        p += row % a->shape[i] * a->strides[i];
        row /= a->shape[i];
    }
    return p;
}

static flat_code blame(const flat *f, const fastce_problem *q, int64_t row, flat_result *result) {
    result->at = row;
    if (q->target_kind == FASTCE_LABELS) {
        const char *p = element(&f->target, row);
        int size = dtype_size(f->target.dtype);
        uint64_t bits = load_bits(p, size, false), ones = ~(uint64_t)0 >> (64 - 8 * size);
        bool ignored = q->has_ignore_index && bits == ((uint64_t)q->ignore_index & ones);
        int64_t label = load_label(p, f->target.dtype, false);
        if (!ignored && !(label >= 0 && label < f->n_classes)) {
            bool beyond = f->target.dtype == FASTCE_U64 && bits > INT64_MAX;
            result->label = beyond ? (int64_t)bits : label;
            return refuse(result, FLAT_BAD_LABEL, beyond ? 0x1p64 : 0);
        }
    }
    if (f->sample_weight.data) {
        double weight = load_number(element(&f->sample_weight, row), f->sample_weight.dtype, false);
        if (!(weight >= 0 && isfinite(weight))) return refuse(result, FLAT_BAD_SAMPLE_WEIGHT, weight);
    }
    return FLAT_BAD_TARGET;
}

static flat_code code_of(const flat *f, const fastce_problem *q, fastce_status status, const fastce_totals *totals,
                         flat_result *result) {
    switch (status) {
    case FASTCE_OK:
        return FLAT_OK;
    case FASTCE_BAD_ROW:
        return blame(f, q, totals->bad_row, result);
    case FASTCE_NO_MEMORY:
        return FLAT_NO_MEMORY;
    case FASTCE_BAD_ISA:
        return FLAT_BAD_ISA;
    case FASTCE_BAD_STRIDE:
        return FLAT_OUT_OVERLAPS_ITSELF;
    case FASTCE_BAD_OVERLAP:
        return FLAT_OUT_OVERLAPS_INPUT;
    default:
        return FLAT_REFUSED;
    }
}

/* What the losses of rows are divided by the unit of base, as NumPy does it: in their own type. */
static void divide_values(const flat *f, double unit) {
    for (int64_t i = 0; i < f->n_rows; i++) {
        if (f->values.dtype == FASTCE_F64)
            ((double *)f->values.data)[i] /= unit;
        else
            ((float *)f->values.data)[i] /= (float)unit;
    }
}

/* Runs a problem that is complete but for the scale of its gradient, and reduces. */
static flat_code carry_out(const flat *f, fastce_problem *q, const char *isa, flat_result *result) {
    fastce_totals totals = {.bad_row = -1};
    double unit = f->flags & FLAT_HAS_BASE ? log(f->base) : 1;
    bool mean = f->reduction == FLAT_MEAN, given = f->flags & FLAT_HAS_DENOMINATOR;
    if (f->n_rows && q->output == FASTCE_GRAD) {
        flat_code code = code_of(f, q, fastce_scan(q, 1, &totals), &totals, result);
        if (code != FLAT_OK) return code;
        double denominator = given ? f->denominator : totals.weight;
        q->grad_scale = f->grad_output / unit;
        if (mean) q->grad_scale = denominator != 0 ? q->grad_scale / denominator : 0;
    }
    if (f->n_rows) {
        flat_code code = code_of(f, q, fastce_run(q, isa, 1, &totals), &totals, result);
        if (code != FLAT_OK) return code;
    }
    double denominator = !mean ? 1 : given ? f->denominator : totals.weight;
    result->number = denominator != 0 ? totals.loss / denominator / unit : NAN;
    if (f->values.data && unit != 1) divide_values(f, unit);
    return FLAT_OK;
}

static flat_code do_call(const int64_t *words, const char *isa, flat_result *result) {
    if (words[0] != FLAT_VERSION) return FLAT_STALE;
    flat f;
    read_words(words, &f);
    flat_code code = check(&f, result);
    if (code != FLAT_OK) return code;

    int64_t shape[MAX_AXES];
    ptrdiff_t strides[5][MAX_AXES];
    fastce_problem q = {.output = f.output, .shape = shape, .n_classes = f.n_classes, .z_loss = f.z_loss};
    for (int i = 0; i < f.logits.n_axes; i++)
        if (i != f.axis) shape[q.n_axes++] = f.logits.shape[i];
    set_array(&q.logits, &f.logits, &f, strides[0]);
    set_array(&q.target, &f.target, &f, strides[1]);
    set_array(&q.sample_weight, &f.sample_weight, &f, strides[2]);
    set_array(&q.grad_output, &f.row_grad, &f, strides[3]);
    set_array(&q.out, &f.out, &f, strides[4]);
    q.target_scale = 1 - f.label_smoothing;
    q.grad_scale = q.temperature = 1;
    q.scanned = 1; /* before a gradient it is; other outputs are new arrays, which nobody sees if a row is bad */
    q.row_values = f.values.data;
    if (f.target.data) {
        q.target_kind = f.target.n_axes == f.logits.n_axes ? FASTCE_DENSE : FASTCE_LABELS;
        q.has_ignore_index = q.target_kind == FASTCE_LABELS && can_hold(f.target.dtype, &f);
        q.ignore_index = f.ignore_index;
    }

    double *room = NULL;
    if (f.weight.data || f.label_smoothing > 0) {
        room = malloc((size_t)f.n_classes * 2 * sizeof *room + 1);
        if (!room) return FLAT_NO_MEMORY;
        set_class_arrays(&q, &f, room);
    }
    code = carry_out(&f, &q, isa, result);
    free(room);
    return code;
}

void flat_call(const int64_t *words, const char *isa, flat_result *result) {
    *result = (flat_result){0};
    result->code = do_call(words, isa, result);
}

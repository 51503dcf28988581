/* Labels, sample weights and gradient scales of a few rows, whatever their dtype and stride; the checks of every row.
 * A label is loaded once and used as checked: the array may change meanwhile. Among the kernels for their vectors. */

/* The type is a constant where this is inlined, and so is the step of neighbours: then it is at the pace of vectors. */
static INLINE void load_labels_as(const char *p, ptrdiff_t step, int64_t count, int64_t *restrict label,
                                  fastce_dtype dtype) {
    const ptrdiff_t size = dtype_size(dtype);
    if (step == size)
        for (int64_t i = 0; i < count; i++) label[i] = load_label(p + i * size, dtype, false);
    else
        for (int64_t i = 0; i < count; i++) label[i] = load_label(p + i * step, dtype, false);
}

static __attribute__((noinline)) void load_labels(const fastce_array *a, const char *p, ptrdiff_t step, int64_t count,
                                                  int64_t *label) {
    if (a->byte_swapped) {
        for (int64_t i = 0; i < count; i++) label[i] = load_label(p + i * step, a->dtype, true);
        return;
    }
    switch (a->dtype) {
    case FASTCE_I8:
        load_labels_as(p, step, count, label, FASTCE_I8);
        break;
    case FASTCE_I16:
        load_labels_as(p, step, count, label, FASTCE_I16);
        break;
    case FASTCE_I32:
        load_labels_as(p, step, count, label, FASTCE_I32);
        break;
    case FASTCE_I64:
        load_labels_as(p, step, count, label, FASTCE_I64);
        break;
    case FASTCE_U8:
        load_labels_as(p, step, count, label, FASTCE_U8);
        break;
    case FASTCE_U16:
        load_labels_as(p, step, count, label, FASTCE_U16);
        break;
    case FASTCE_U32:
        load_labels_as(p, step, count, label, FASTCE_U32);
        break;
    default:
        load_labels_as(p, step, count, label, FASTCE_U64);
        break;
    }
}

/* An ignored label becomes -1, and a -1 that is none becomes another label that is never valid. Unsigned 64-bit values
 * were cut to int64 and are compared bit by bit. */
static void mark_ignored(const fastce_problem *q, const char *p, ptrdiff_t step, int64_t count, int64_t *label) {
    const bool wide = q->target.dtype == FASTCE_U64, can_ignore = q->has_ignore_index;
    const int64_t ignored = q->ignore_index;
    for (int64_t i = 0; i < count && !wide; i++) {
        int64_t sound = label[i] == -1 ? INT64_MAX : label[i];
        label[i] = can_ignore & (label[i] == ignored) ? -1 : sound;
    }
    for (int64_t i = 0; i < count && wide; i++) {
        int64_t value = (int64_t)load_bits(p + i * step, 8, q->target.byte_swapped);
        label[i] = can_ignore && value == ignored ? -1 : label[i] == -1 ? INT64_MAX : label[i];
    }
}

/* The first of count labels that is neither valid nor ignored, or -1; ignored ones are -1 afterwards. */
static int64_t check_labels(const task *t, const char *p, ptrdiff_t step, int64_t count, int64_t *restrict label,
                            bool *any_ignored) {
    const fastce_problem *q = t->problem;
    uint64_t classes = (uint64_t)q->n_classes;
    int64_t outside = 0; /* negative where a label is */
    const uint64_t last = classes - 1;
    if (q->target.dtype == FASTCE_I64 && !q->target.byte_swapped && step == 8) {
        prefetch(p + AHEAD_BYTES, count * 8);
        for (int64_t i = 0; i < count; i++) {
            memcpy(&label[i], p + i * 8, 8);
            outside |= label[i] | (int64_t)(last - (uint64_t)label[i]);
        }
    } else if (q->target.dtype == FASTCE_I32 && !q->target.byte_swapped && step == 4) {
        prefetch(p + AHEAD_BYTES, count * 4);
        for (int64_t i = 0; i < count; i++) {
            int32_t narrow;
            memcpy(&narrow, p + i * 4, 4);
            label[i] = narrow;
            outside |= label[i] | (int64_t)(last - (uint64_t)label[i]);
        }
    } else {
        load_labels(&q->target, p, step, count, label);
        for (int64_t i = 0; i < count; i++) outside |= label[i] | (int64_t)(last - (uint64_t)label[i]);
    }
    bool ignorable = q->has_ignore_index && (uint64_t)q->ignore_index < classes;
    if (outside >= 0 && !ignorable) return -1;
    mark_ignored(q, p, step, count, label);
    int64_t bad = 0, ignored = 0;
    for (int64_t i = 0; i < count; i++) {
        ignored |= label[i] == -1;
        bad |= (label[i] != -1) & ((uint64_t)label[i] >= classes);
    }
    *any_ignored |= ignored != 0;
    for (int64_t i = 0; i < count && bad; i++)
        if (label[i] != -1 && (uint64_t)label[i] >= classes) return i;
    return -1;
}

/* Numbers as float64; those that are floats of the machine at the pace of vectors where they are neighbours. */
static void load_numbers(const fastce_array *a, const char *p, ptrdiff_t step, int64_t count, double *to) {
    if (a->dtype == FASTCE_F64 && !a->byte_swapped && step == 8) {
        prefetch(p + AHEAD_BYTES, count * 8);
        memcpy(to, p, (size_t)count * 8);
    } else if (a->dtype == FASTCE_F64 && !a->byte_swapped) {
        for (int64_t i = 0; i < count; i++) memcpy(&to[i], p + i * step, 8);
    } else if (a->dtype == FASTCE_F32 && !a->byte_swapped && step == 4) {
        prefetch(p + AHEAD_BYTES, count * 4);
        for (int64_t i = 0; i < count; i++) to[i] = (double)float_from_bits((uint32_t)load_bits(p + i * 4, 4, false));
    } else if (a->dtype == FASTCE_F32 && !a->byte_swapped) {
        for (int64_t i = 0; i < count; i++)
            to[i] = (double)float_from_bits((uint32_t)load_bits(p + i * step, 4, false));
    } else {
        for (int64_t i = 0; i < count; i++) to[i] = load_number(p + i * step, a->dtype, a->byte_swapped);
    }
}

/* The first of count sample weights that is negative or not finite, or -1. */
static int64_t check_weights(const fastce_array *a, const char *p, ptrdiff_t step, int64_t count, double *weight,
                             bool *any_ignored) {
    int64_t bad = 0, zero = 0;
    load_numbers(a, p, step, count, weight);
    for (int64_t i = 0; i < count; i++) {
        bad |= !(weight[i] >= 0) | !(weight[i] <= DBL_MAX);
        zero |= weight[i] == 0;
    }
    *any_ignored |= zero;
    for (int64_t i = 0; i < count && bad; i++)
        if (!(weight[i] >= 0 && weight[i] <= DBL_MAX)) return i;
    return -1;
}

/* Weights and masses of rows that are neither weighted nor ignored: the same for every batch of a run, of which the first
 * is the longest. */
static void fill_uniform(const fastce_problem *q, rows *r) {
    for (int64_t i = 0; i < r->count && !r->uniform; i++) {
        r->weight[i] = 1;
        r->label_mass[i] = q->target_scale;
    }
    r->uniform = true;
}

/* Adds to sum[j], and to lost[j] what rounding loses of it, x[j] for each j: add_exactly for vectors. */
static INLINE void add_all_exactly(double *restrict sum, double *restrict lost, const double *x, int count) {
    for (int j = 0; j < count; j++) {
        const double s = sum[j] + x[j], added = s - sum[j];
        lost[j] += (sum[j] - (s - added)) + (x[j] - added);
        sum[j] = s;
    }
}

/* Adds weights in several sums at once: one alone would wait for each addition. */
static void add_weights(const double *weight, int64_t count, partial *sums) {
    enum { SUMS = 32 };
    double sum[SUMS] = {0}, lost[SUMS] = {0};
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS) add_all_exactly(sum, lost, weight + i, SUMS);
    for (; i < count; i++) add_exactly(&sums->weight, &sums->weight_lost, weight[i]);
    for (int n = SUMS / 2; n > 0; n /= 2) {
        add_all_exactly(sum, lost, sum + n, n);
        for (int j = 0; j < n; j++) lost[j] += lost[j + n];
    }
    add_exactly(&sums->weight, &sums->weight_lost, sum[0]);
    sums->weight_lost += lost[0];
}

static void fill_weighted(const fastce_problem *q, rows *r, partial *sums) {
    const bool labels = q->target_kind == FASTCE_LABELS;
    const double *class_weight = labels ? q->class_weight : NULL, scale = q->target_scale;
    const int64_t count = r->count;
    int64_t *restrict label = r->label;
    double *restrict weight = r->weight, *restrict mass = r->label_mass;
    r->uniform = false;
    for (int64_t i = 0; i < count && !q->sample_weight.data; i++) weight[i] = 1;
    /* By factors and bits: which rows are ignored cannot be predicted. */
    for (int64_t i = 0; i < count && labels && !r->all_kept; i++) weight[i] *= label[i] < 0 ? 0.0 : 1.0;
    for (int64_t i = 0; i < count && !r->all_kept; i++) label[i] |= -(int64_t)(weight[i] == 0);
    for (int64_t i = 0; i < count && !class_weight; i++) mass[i] = weight[i];
    for (int64_t i = 0; i < count && class_weight; i++)
        mass[i] = weight[i] * class_weight[label[i] + (int64_t)((uint64_t)label[i] >> 63)];
    if (q->sample_weight.data || class_weight) {
        add_weights(mass, count, sums);
    } else {
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++) kept += label[i] >= 0;
        sums->weight += (double)kept; /* exact beside other counts */
    }
    for (int64_t i = 0; i < count && scale != 1; i++) mass[i] *= scale;
}

static void fill_grad_scale(const fastce_problem *q, const char *p, ptrdiff_t step, rows *r) {
    const fastce_array *a = &q->grad_output;
    if (a->data) load_numbers(a, p, step, r->count, r->grad_scale);
    for (int64_t i = 0; i < r->count && a->data; i++) r->grad_scale[i] *= q->grad_scale;
    for (int64_t i = 0; i < r->count && !a->data && !r->scaled; i++) r->grad_scale[i] = q->grad_scale;
    r->scaled = true;
}

/* Factors and positive weights of elements; returns the index of the first that is not acceptable, or -1. */
static int64_t load_factors(const fastce_problem *q, const char *const at[], const ptrdiff_t step[], rows *r) {
    double factor[VISIT_ROWS];
    bool ignored = false;
    int64_t bad = -1;
    if (q->positive_weight.data)
        bad = check_weights(&q->positive_weight, at[POSITIVE_WEIGHT], step[POSITIVE_WEIGHT], r->count, r->positive,
                            &ignored);
    if (q->factor.data) {
        int64_t bad_factor =
            check_weights(&q->factor, at[FACTOR], step[FACTOR], bad < 0 ? r->count : bad, factor, &ignored);
        if (bad_factor >= 0) return bad_factor;
        for (int64_t i = 0; i < r->count && bad < 0; i++) r->label_mass[i] = r->weight[i] * factor[i];
        r->uniform = false;
    }
    return bad;
}

/* What load_targets does, for elements, which have no labels. */
static int64_t load_elements(const fastce_problem *q, const char *const at[], const ptrdiff_t step[], int64_t count,
                             rows *r, partial *sums) {
    bool any_ignored = false;
    r->count = count;
    if (q->sample_weight.data) {
        int64_t bad =
            check_weights(&q->sample_weight, at[SAMPLE_WEIGHT], step[SAMPLE_WEIGHT], count, r->weight, &any_ignored);
        if (bad >= 0) return bad;
        r->uniform = false;
        add_weights(r->weight, count, sums);
    } else {
        fill_uniform(q, r);
        sums->weight += (double)count; /* exact beside other counts */
    }
    r->all_kept = !any_ignored;
    if (q->output == FASTCE_GRAD) fill_grad_scale(q, at[GRAD_OUTPUT], step[GRAD_OUTPUT], r);
    return load_factors(q, at, step, r);
}

/* Fills label, label_mass, weight and grad_scale of count rows and adds their weights; returns the index of the first row
 * whose label or sample weight is not acceptable, or -1. */
static int64_t load_targets(const task *t, const char *const at[], const ptrdiff_t step[], int64_t count, rows *r,
                            partial *sums) {
    const fastce_problem *q = t->problem;
    bool weighted = q->sample_weight.data != NULL, any_ignored = false;
    if (t->elements) return load_elements(q, at, step, count, r, sums);
    r->count = count;

    int64_t bad = -1;
    if (weighted)
        bad = check_weights(&q->sample_weight, at[SAMPLE_WEIGHT], step[SAMPLE_WEIGHT], count, r->weight, &any_ignored);
    if (q->target_kind == FASTCE_LABELS) {
        int64_t bad_label =
            check_labels(t, at[TARGET], step[TARGET], bad < 0 ? count : bad + 1, r->label, &any_ignored);
        if (bad_label >= 0) bad = bad_label;
    } else {
        for (int64_t i = 0; i < count; i++) r->label[i] = -1;
    }
    if (bad >= 0) return bad;

    r->all_kept = !any_ignored;
    if (weighted || any_ignored || (q->class_weight && q->target_kind == FASTCE_LABELS)) {
        fill_weighted(q, r, sums);
    } else {
        fill_uniform(q, r);
        sums->weight += (double)count; /* exact beside other counts */
    }
    if (q->output == FASTCE_GRAD || q->output == FASTCE_SOFTMAX)
        fill_grad_scale(q, at[GRAD_OUTPUT], step[GRAD_OUTPUT], r);
    return -1;
}

/* Whether n neighbours are finite and not negative, by their bits: only -0 has the sign and is neither. */
static bool all_are_masses(const char *p, int64_t n, fastce_dtype dtype) {
    const uint64_t sign = (uint64_t)1 << (8 * dtype_size(dtype) - 1);
    uint64_t bad = 0;
    if (dtype == FASTCE_F64) {
        for (int64_t k = 0; k < n; k++) {
            uint64_t bits;
            memcpy(&bits, p + k * 8, 8);
            bad |= (bits >= 0x7ff0000000000000) & (bits != sign);
        }
    } else if (dtype == FASTCE_F32) {
        uint32_t bad32 = 0, sign32 = (uint32_t)sign;
        for (int64_t k = 0; k < n; k++) {
            uint32_t bits;
            memcpy(&bits, p + k * 4, 4);
            bad32 |= (bits >= 0x7f800000) & (bits != sign32);
        }
        bad = bad32;
    } else {
        uint16_t bad16 = 0, sign16 = (uint16_t)sign, infinity = dtype == FASTCE_F16 ? 0x7c00 : 0x7f80;
        for (int64_t k = 0; k < n; k++) {
            uint16_t bits;
            memcpy(&bits, p + k * 2, 2);
            bad16 |= (bits >= infinity) & (bits != sign16);
        }
        bad = bad16;
    }
    return bad == 0;
}

static int64_t first_bad_dense_row(const task *t, const char *dense, ptrdiff_t step, int64_t count) {
    const fastce_array *a = &t->problem->target;
    int64_t classes = t->problem->n_classes;
    const double largest = t->largest_target;
    if (t->any_target || a->dtype == FASTCE_BOOL) return -1;
    if (largest > 1 && a->dtype >= FASTCE_U8 && a->dtype <= FASTCE_U64) return -1;
    const bool neighbours = largest > 1 && dtype_is_floating(a->dtype) && a->class_stride == dtype_size(a->dtype) &&
                            !a->byte_swapped && dtype_size(a->dtype) <= (int)sizeof(real);
    for (int64_t i = 0; i < count; i++) {
        if (neighbours && all_are_masses(dense + i * step, classes, a->dtype)) continue;
        const char *row = dense + i * step;
        for (int64_t k = 0; k < classes; k++) {
            double x = load_number(row + k * a->class_stride, a->dtype, a->byte_swapped);
            if (!(x >= 0 && x <= largest)) return i;
        }
    }
    return -1;
}

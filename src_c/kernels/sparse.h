/* Sparse targets: classes and their masses, as the list of a row has them. -1 lists nothing. What is listed is loaded once
 * and used as checked: the arrays may change meanwhile. */

enum { LISTED_AT_ONCE = 64 };

/* Classes of entries [first, first + n) of a row's list, and their masses. */
static void load_listed(const fastce_problem *q, const char *index, const char *probability, int64_t first, int64_t n,
                        int64_t *listed, double *mass) {
    const fastce_array *a = &q->target, *b = &q->probabilities;
    const char *p = probability + first * b->class_stride;
    load_labels(a, index + first * a->class_stride, a->class_stride, n, listed);
    if (b->dtype == FASTCE_F32 && !b->byte_swapped) {
        for (int64_t j = 0; j < n; j++) mass[j] = load_number(p + j * b->class_stride, FASTCE_F32, false);
    } else {
        for (int64_t j = 0; j < n; j++) mass[j] = load_number(p + j * b->class_stride, b->dtype, b->byte_swapped);
    }
}

/* Whether loaded entries are acceptable, adding up their masses; what lists nothing has the class -1 and the mass 0 then. */
static bool check_listed(const task *t, int64_t n, int64_t *listed, double *mass, double *sum) {
    const uint64_t classes = (uint64_t)t->problem->n_classes;
    for (int64_t j = 0; j < n; j++) {
        if (listed[j] == -1) {
            mass[j] = 0;
            continue;
        }
        if ((uint64_t)listed[j] >= classes || !(mass[j] >= 0 && mass[j] <= t->largest_target)) return false;
        *sum += mass[j];
    }
    return true;
}

/* Whether a row's masses may add up to so much: where the rest is spread to 1, but for 16 units in the last place of the
 * dtype they are in. */
static bool check_sum(const task *t, double sum) {
    static const double unit[] = {
        [FASTCE_F16] = 0x1p-10, [FASTCE_BF16] = 0x1p-7, [FASTCE_F32] = 0x1p-23, [FASTCE_F64] = 0x1p-52};
    const fastce_problem *q = t->problem;
    const double slack = dtype_is_floating(q->probabilities.dtype) ? 16 * unit[q->probabilities.dtype] : 0;
    return sum <= (q->spread_missing ? 1 + slack : t->largest_target);
}

static int64_t first_bad_sparse_row(const task *t, const char *const at[], const ptrdiff_t step[], int64_t count) {
    const fastce_problem *q = t->problem;
    for (int64_t i = 0; i < count; i++) {
        double sum = 0, mass[LISTED_AT_ONCE];
        int64_t listed[LISTED_AT_ONCE];
        for (int64_t first = 0; first < q->n_listed; first += LISTED_AT_ONCE) {
            const int64_t n = q->n_listed - first < LISTED_AT_ONCE ? q->n_listed - first : LISTED_AT_ONCE;
            load_listed(q, at[TARGET] + i * step[TARGET], at[BESIDE] + i * step[BESIDE], first, n, listed, mass);
            if (!check_listed(t, n, listed, mass, &sum)) return i;
        }
        if (!check_sum(t, sum)) return i;
    }
    return -1;
}

/* Adds the masses of a class that is listed more than once to the first of them, in the order of the list; the others list
 * nothing then. Returns how many classes there are. The row remembers meanwhile where a class came first. Class k is at
 * dense[k * stride]. */
static int64_t join_listed(int64_t n, int64_t *listed, double *mass, real *dense, ptrdiff_t stride) {
    int64_t distinct = 0;
    for (int64_t j = n - 1; j >= 0; j--) {
        const int32_t place = (int32_t)j;
        if (listed[j] >= 0) memcpy(&dense[listed[j] * stride], &place, sizeof place);
    }
    for (int64_t j = 0; j < n; j++) {
        int32_t first;
        if (listed[j] < 0) continue;
        memcpy(&first, &dense[listed[j] * stride], sizeof first);
        if (first == j) {
            distinct++;
        } else {
            mass[first] += mass[j];
            listed[j] = -1;
        }
    }
    return distinct;
}

/* A row's list as dense masses, where all else is 0 before; false where it is not acceptable. */
static bool densify(const task *t, const char *index, const char *probability, int64_t *listed, double *mass,
                    real *dense, ptrdiff_t stride) {
    const fastce_problem *q = t->problem;
    const int64_t n = q->n_listed;
    double sum = 0;
    load_listed(q, index, probability, 0, n, listed, mass);
    if (!check_listed(t, n, listed, mass, &sum) || !check_sum(t, sum)) {
        for (int64_t j = 0; j < n; j++) listed[j] = -1;
        return false;
    }
    const int64_t others = q->n_classes - join_listed(n, listed, mass, dense, stride);
    if (q->spread_missing && others > 0) {
        const real even = sum < 1 ? (real)((1 - sum) / (double)others) : 0;
        for (int64_t k = 0; k < q->n_classes; k++) dense[k * stride] = even;
    }
    for (int64_t j = 0; j < n; j++)
        if (listed[j] >= 0) dense[listed[j] * stride] = (real)mass[j];
    return true;
}

/* Makes a row 0 again: what is listed, or all of it where what was missing was spread. */
static void clear_listed(const fastce_problem *q, const int64_t *listed, real *dense) {
    if (q->spread_missing) {
        memset(dense, 0, (size_t)q->n_classes * sizeof *dense);
        return;
    }
    for (int64_t j = 0; j < q->n_listed; j++)
        if (listed[j] >= 0) dense[listed[j]] = 0;
}

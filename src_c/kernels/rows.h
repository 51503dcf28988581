/* Rows of vectors: neighbouring classes fill a vector, one row at a time, block by block, so that memory is read once.
 * For long rows whose classes are neighbours in memory. */

/* Short rows that leave past the caches gather, each from a line of its own on: as exponentials, and a factor. */
enum {
    MOST_STAGED = 128,
    STAGED_REALS = VISIT_ROWS * MOST_STAGED,
    STAGED_ROOM = STAGED_REALS + VISIT_ROWS + 2 * GROUP
};

/* A block of a row as vectors load it: where it lies, or copied. */
typedef struct block {
    const char *p;
    int64_t n;
} block;

static INLINE block get_block(const fastce_array *a, const char *row, int64_t first, int64_t n_classes, bool direct,
                              real *copy) {
    int64_t n = n_classes - first < BLOCK_CLASSES ? n_classes - first : BLOCK_CLASSES;
    const char *p = row + first * a->class_stride;
    if (direct) return (block){p, n};
    gather(copy, p, a->class_stride, n, a->dtype, a->byte_swapped);
    return (block){(const char *)copy, n};
}

/* A NaN may or may not come out: the sum of the exponentials finds it. */
static INLINE real block_max(block b, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    vec m[4];
    for (int j = 0; j < 4; j++) m[j] = v_set1(-INFINITY);
    int64_t i = 0;
    for (; i + GROUP <= b.n; i += GROUP)
        for (int j = 0; j < 4; j++) m[j] = v_max(m[j], load(b.p + (i + j * LANES) * size, storage));
    for (; i + LANES <= b.n; i += LANES) m[0] = v_max(m[0], load(b.p + i * size, storage));
    if (i < b.n) m[1] = v_max(m[1], load_first(b.p + i * size, b.n - i, -INFINITY, storage));
    real lanes[LANES];
    v_store(lanes, v_max(v_max(m[0], m[1]), v_max(m[2], m[3])));
    real max = lanes[0];
    for (int j = 1; j < LANES; j++) max = lanes[j] > max || max != max ? lanes[j] : max;
    return max;
}

/* The first position of a value, or -1. */
static INLINE int64_t block_find(block b, real value, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    for (int64_t i = 0; i < b.n; i += LANES) {
        int64_t n = b.n - i < LANES ? b.n - i : LANES;
        vec x = n == LANES ? load(b.p + i * size, storage) : load_first(b.p + i * size, n, 0, storage);
        if (!v_any(v_eq(x, v_set1(value)))) continue;
        real lanes[LANES];
        v_store(lanes, x);
        for (int64_t j = 0; j < n; j++)
            if (lanes[j] == value) return i + j;
    }
    return -1;
}

/* Rows of up to this many classes are short: several at once, so that the latencies of one row's end overlap the next. */
enum { SHORT_CLASSES = 512, ROWS_AT_ONCE = 4 };

static INLINE real load_one(const char *p, fastce_dtype storage) {
    if (storage != real_dtype()) return (real)load_number(p, storage, false);
    real x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* Upper limits of exponentials, the -inf leaving out a class: vectors are limited by those that start so many before it,
 * or by the first ones where they hold no class to leave out. */
static const real limits[2 * SHORT_CLASSES + GROUP] = {[0 ... SHORT_CLASSES - 1] = EXP_HIGHEST,
                                                       [SHORT_CLASSES] = -INFINITY,
                                                       [SHORT_CLASSES + 1 ... 2 * SHORT_CLASSES + GROUP - 1] =
                                                           EXP_HIGHEST};

static INLINE const real *limits_at(int64_t i, int64_t excluded) {
    uint64_t position = (uint64_t)(excluded - i);
    return limits + (position < GROUP ? SHORT_CLASSES - position : 0);
}

/* The same for a vector whose first lanes, as many as it starts before the end of the first half, were there before. */
static const real overlap_limits[2 * LANES] = {[0 ... LANES - 1] = -INFINITY, [LANES... 2 * LANES - 1] = EXP_HIGHEST};

static INLINE void exp_and_add(vec *x, int count, vec shift, const real *limit, vec *sum, real *kept, int64_t n) {
    vec highest[4];
    for (int j = 0; j < count; j++) highest[j] = v_load(limit + j * LANES);
    for (int j = 0; j < count; j++) x[j] = v_sub(x[j], shift);
    exp_limited(x, highest, count);
    for (int j = 0; j < count && kept; j++) {
        if (n >= (j + 1) * LANES)
            v_store(kept + j * LANES, x[j]);
        else
            v_store_first(kept + j * LANES, x[j], n - j * LANES);
    }
    for (int j = 0; j < count; j++) sum[j] = v_add(sum[j], x[j]);
}

static INLINE vec four_in_one(const vec *a) { return v_add(v_add(a[0], a[1]), v_add(a[2], a[3])); }

static INLINE void flush(wide *sums, vec *sum) {
    *sums = w_add(*sums, four_in_one(sum));
    for (int j = 0; j < 4; j++) sum[j] = v_set1(0);
}

/* The last vectors of a block, fewer than a group: -inf beyond its end. */
static INLINE void add_tail(int count, block b, int64_t i, vec shift, const real *limit, vec *sum, real *kept,
                            fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    vec x[4];
    for (int j = 0; j + 1 < count; j++) x[j] = load(b.p + (i + j * LANES) * size, storage);
    int64_t last = i + (count - 1) * LANES;
    x[count - 1] = b.n - last >= LANES ? load(b.p + last * size, storage)
                                       : load_first(b.p + last * size, b.n - last, -INFINITY, storage);
    exp_and_add(x, count, shift, limit, sum, kept, b.n - i);
}

static INLINE void prefetch_ahead(const char *p, ptrdiff_t size, ptrdiff_t ahead) {
    if (ahead == STREAM_AHEAD_BYTES)
        prefetch_stream(p + ahead, size);
    else
        prefetch(p + ahead, size);
}

/* Sum of exp(x_k - shift) over a block without the class at excluded (none where it is not in the block), whose exponential is kept as 0.
 * Every few vectors the sum moves to float64, so that its error does not grow. Meanwhile asks for what is `ahead`, and for
 * what is at `beside`, unless that is NULL. */
static INLINE double block_exp_sum_as(block b, real shift, int64_t excluded, real *kept, ptrdiff_t ahead,
                                      const char *beside, outgoing *o, fastce_dtype storage) {
    enum { GROUPS_A_FLUSH = 4 };
    const ptrdiff_t size = storage_size(storage);
    wide sums = w_zero();
    vec sum[4], x[4], shifts = v_set1(shift);
    for (int j = 0; j < 4; j++) sum[j] = v_set1(0);
    int64_t i = 0;
    for (int groups = 1; i + GROUP <= b.n; i += GROUP, groups++) {
        const char *p = b.p + i * size;
        prefetch_ahead(p, GROUP * size, ahead);
        if (beside) prefetch(beside + i * size, GROUP * size);
        for (int j = 0; j < 4; j++) x[j] = load(p + j * LANES * size, storage);
        exp_and_add(x, 4, shifts, limits_at(i, excluded), sum, kept ? kept + i : NULL, GROUP);
        if (o) send_group(o, storage);
        if (groups % GROUPS_A_FLUSH == 0) flush(&sums, sum);
    }
    prefetch_ahead(b.p + i * size, (b.n - i) * size, ahead);
    if (beside) prefetch(beside + i * size, (b.n - i) * size);
    if (o) send_group(o, storage);
    const real *limit = limits_at(i, excluded);
    real *to = kept ? kept + i : NULL;
    switch ((b.n - i + LANES - 1) / LANES) {
    case 0:
        break;
    case 1:
        add_tail(1, b, i, shifts, limit, sum, to, storage);
        break;
    case 2:
        add_tail(2, b, i, shifts, limit, sum, to, storage);
        break;
    case 3:
        add_tail(3, b, i, shifts, limit, sum, to, storage);
        break;
    default:
        add_tail(4, b, i, shifts, limit, sum, to, storage);
        break;
    }
    return w_total(w_add(sums, four_in_one(sum)));
}

static __attribute__((noinline)) double block_exp_sum_real(block b, real shift, int64_t excluded, real *kept,
                                                           ptrdiff_t ahead, const char *beside, outgoing *o) {
    if (!kept && !beside) return block_exp_sum_as(b, shift, excluded, NULL, ahead, NULL, NULL, real_dtype());
    return block_exp_sum_as(b, shift, excluded, kept, ahead, beside, o, real_dtype());
}
static INLINE double block_exp_sum(block b, real shift, int64_t excluded, real *kept, ptrdiff_t ahead,
                                   const char *beside, outgoing *o, fastce_dtype storage) {
    if (storage == real_dtype()) return block_exp_sum_real(b, shift, excluded, kept, ahead, beside, o);
    return block_exp_sum_as(b, shift, excluded, kept, ahead, beside, o, storage);
}

/* Short rows, a few at once: where they lie, where their exponentials are kept, what leaves their label out, and what is
 * prefetched meanwhile; to the sum of exp(x_k - shift) but for the label's, which is kept as 0, and where it is wanted the
 * sum of shift - x_k. */
enum { BATCH_ROWS = 64 };

typedef struct short_rows {
    const char *p[BATCH_ROWS], *ahead[BATCH_ROWS];
    int64_t label[BATCH_ROWS];
    real *kept[BATCH_ROWS];
    real shift[BATCH_ROWS];
    ptrdiff_t ahead_step, further; /* from one vector of each row to the next; from what comes into L1 to L2 */
    double sum[BATCH_ROWS], spread[BATCH_ROWS];
} short_rows;

/* Vectors whose lanes are still to be added up, of ROWS_AT_ONCE rows at a time. Adding them up needs few instructions, but
 * each waits for the one before: that of many rows together overlaps. A vector is the sum of two chains of exponentials,
 * short ones, so that the error does not grow. */
enum { VECTORS_A_CHAIN = 4, PENDING_REALS = 1024 };

static INLINE int64_t flushes_of_short(int64_t n) {
    const int64_t vectors = (n + LANES - 1) / LANES;
    return (vectors + 2 * VECTORS_A_CHAIN - 1) / (2 * VECTORS_A_CHAIN);
}

/* How many rows pend at most. */
static INLINE int64_t batch_of_short(int64_t n) {
    const int64_t most = PENDING_REALS / (flushes_of_short(n) * LANES) / ROWS_AT_ONCE * ROWS_AT_ONCE;
    return most < BATCH_ROWS ? most : BATCH_ROWS;
}

/* Sums of ROWS_AT_ONCE rows from the lanes of their vectors, in float64. */
static INLINE void total_short(const real *pending, int64_t flushes, double *totals) {
    double sum[ROWS_AT_ONCE / COLUMNS][LANES], lost[ROWS_AT_ONCE / COLUMNS][LANES];
    for (int set = 0; set < ROWS_AT_ONCE / COLUMNS; set++) v_clear(sum[set], lost[set]);
    for (int64_t f = 0; f < flushes; f++, pending += ROWS_AT_ONCE * LANES) {
        for (int set = 0; set < ROWS_AT_ONCE / COLUMNS; set++) {
            vec a[COLUMNS];
            for (int j = 0; j < COLUMNS; j++) a[j] = v_load(pending + (set * COLUMNS + j) * LANES);
            v_transpose(a);
            vec all = a[0];
            if (COLUMNS == 2) all = v_add(a[0], a[COLUMNS - 1]);
            if (COLUMNS == 4) all = four_in_one(a);
            v_accumulate(sum[set], lost[set], all);
        }
    }
    for (int j = 0; j < ROWS_AT_ONCE; j++) {
        const double *sums = sum[j / COLUMNS] + j % COLUMNS, *losts = lost[j / COLUMNS] + j % COLUMNS;
        if (sizeof(real) < sizeof(double)) {
            totals[j] = sums[0];
            for (int i = COLUMNS; i < LANES; i += COLUMNS) totals[j] += sums[i];
        } else {
            double all = sums[0], all_lost = losts[0];
            for (int i = COLUMNS; i < LANES; i += COLUMNS) add_exactly(&all, &all_lost, sums[i]), all_lost += losts[i];
            totals[j] = all - all == 0 ? all + all_lost : all; /* beside infinity, what was lost is NaN */
        }
    }
}

static INLINE void prefetch_column(const short_rows *g, const char **ahead) {
    for (int j = 0; j < ROWS_AT_ONCE; j++) {
        __builtin_prefetch(ahead[j] + g->further, 0, 2);
        __builtin_prefetch(ahead[j]);
        ahead[j] += g->ahead_step;
    }
}

/* A vector of each row: its exponentials, and what is below the shift, where the limit does not leave it out. */
static INLINE void exp_column(const short_rows *g, int64_t row, int64_t i, const vec *shift, const vec *limit, vec *x,
                              vec *below, bool keeps, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    for (int j = 0; j < ROWS_AT_ONCE; j++) x[j] = v_sub(load(g->p[row + j] + i * size, storage), shift[j]);
    for (int j = 0; j < ROWS_AT_ONCE && below; j++) below[j] = v_select(v_gt(x[j], limit[j]), v_set1(0), x[j]);
    exp_limited(x, limit, ROWS_AT_ONCE);
    for (int j = 0; j < ROWS_AT_ONCE && keeps; j++) v_store(g->kept[row + j] + i, x[j]);
}

/* A chain of each row: the first of two takes the next place, the second joins it there. */
static INLINE void add_chains(real **to, vec *sum, bool second) {
    if (second) *to -= ROWS_AT_ONCE * LANES;
    for (int j = 0; j < ROWS_AT_ONCE; j++, *to += LANES) {
        v_store(*to, second ? v_add(v_load(*to), sum[j]) : sum[j]);
        sum[j] = v_set1(0);
    }
}

/* Classes that do not fill a vector are in one that overlaps the vector before, whose exponentials are kept over them. */
static INLINE void sum_short_as(short_rows *g, int64_t rows, int64_t n, bool keeps, bool spreads, outgoing *o,
                                fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    const int64_t whole = n / LANES * LANES, last = n - LANES, flushes = flushes_of_short(n);
    IN_LINES real pending[PENDING_REALS];
    IN_LINES real pending_spread[PENDING_REALS];
    real *to = pending, *spread_to = pending_spread;
    for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
        const char *ahead[ROWS_AT_ONCE];
        const real *limit_of[ROWS_AT_ONCE];
        vec shift[ROWS_AT_ONCE], sum[ROWS_AT_ONCE], spread[ROWS_AT_ONCE], x[ROWS_AT_ONCE], below[ROWS_AT_ONCE];
        vec limit[ROWS_AT_ONCE];
        for (int j = 0; j < ROWS_AT_ONCE; j++) {
            const int64_t label = g->label[row + j];
            g->shift[row + j] = load_one(g->p[row + j] + label * size, storage);
            shift[j] = v_set1(g->shift[row + j]);
            sum[j] = spread[j] = v_set1(0);
            limit_of[j] = limits + SHORT_CLASSES - label;
            ahead[j] = g->ahead[row + j];
        }
        if (whole < n) {
            const vec overlap = v_load(overlap_limits + (n - whole));
            prefetch_column(g, ahead);
            for (int j = 0; j < ROWS_AT_ONCE; j++) limit[j] = v_min(overlap, v_load(limit_of[j] + last));
            exp_column(g, row, last, shift, limit, x, spreads ? below : NULL, keeps, storage);
            for (int j = 0; j < ROWS_AT_ONCE; j++) sum[j] = x[j];
            for (int j = 0; j < ROWS_AT_ONCE && spreads; j++) spread[j] = v_sub(spread[j], below[j]);
        }
        bool second = false;
        for (int64_t begin = 0, end; begin < whole; begin = end, second = !second) {
            end = begin + (VECTORS_A_CHAIN - (begin == 0 && whole < n)) * LANES;
            if (end > whole) end = whole;
            for (int64_t i = begin; i < end; i += LANES) {
                prefetch_column(g, ahead);
                for (int j = 0; j < ROWS_AT_ONCE; j++) limit[j] = v_load(limit_of[j] + i);
                exp_column(g, row, i, shift, limit, x, spreads ? below : NULL, keeps, storage);
                for (int j = 0; j < ROWS_AT_ONCE; j++) sum[j] = v_add(sum[j], x[j]);
                for (int j = 0; j < ROWS_AT_ONCE && spreads; j++) spread[j] = v_sub(spread[j], below[j]);
                if (o) send_group(o, storage);
            }
            add_chains(&to, sum, second);
            if (spreads) add_chains(&spread_to, spread, second);
        }
    }
    for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
        total_short(pending + row * flushes * LANES, flushes, g->sum + row);
        if (spreads) total_short(pending_spread + row * flushes * LANES, flushes, g->spread + row);
    }
}

static INLINE void sum_short(short_rows *g, int64_t rows, int64_t n, bool keeps, bool spreads, outgoing *o,
                             fastce_dtype storage) {
    if (keeps)
        sum_short_as(g, rows, n, true, spreads, o, storage);
    else if (spreads)
        sum_short_as(g, rows, n, false, true, NULL, storage);
    else
        sum_short_as(g, rows, n, false, false, NULL, storage);
}

/* Functions of their own: the loop needs all registers. */
#define ALONE static __attribute__((noinline))
#ifdef REAL_HAS_HALVES
ALONE void sum_short_f16(short_rows *g, int64_t rows, int64_t n, bool keeps, bool spreads, outgoing *o) {
    sum_short(g, rows, n, keeps, spreads, o, FASTCE_F16);
}
ALONE void sum_short_bf16(short_rows *g, int64_t rows, int64_t n, bool keeps, bool spreads, outgoing *o) {
    sum_short(g, rows, n, keeps, spreads, o, FASTCE_BF16);
}
#endif
ALONE void sum_short_real(short_rows *g, int64_t rows, int64_t n, bool keeps, bool spreads, outgoing *o) {
    sum_short(g, rows, n, keeps, spreads, o, real_dtype());
}

/* Sum of shift - x_k over a block. */
static INLINE double block_spread(block b, real shift, fastce_dtype storage) {
    enum { GROUPS_A_FLUSH = 4 };
    const ptrdiff_t size = storage_size(storage);
    const vec shifts = v_set1(shift);
    wide sums = w_zero();
    vec sum[4];
    for (int j = 0; j < 4; j++) sum[j] = v_set1(0);
    int64_t i = 0;
    for (int groups = 1; i + GROUP <= b.n; i += GROUP, groups++) {
        for (int j = 0; j < 4; j++) sum[j] = v_add(sum[j], v_sub(shifts, load(b.p + (i + j * LANES) * size, storage)));
        if (groups % GROUPS_A_FLUSH == 0) flush(&sums, sum);
    }
    for (int j = 0; i < b.n; i += LANES, j++) {
        int64_t n = b.n - i < LANES ? b.n - i : LANES;
        vec x = n == LANES ? load(b.p + i * size, storage) : load_first(b.p + i * size, n, shift, storage);
        sum[j] = v_add(sum[j], v_sub(shifts, x));
    }
    return w_total(w_add(sums, four_in_one(sum)));
}

/* exp(x_k - shift) for a block, as block_exp_sum keeps them. */
static INLINE void block_exp(block b, real shift, real *kept, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    vec shifts = v_set1(shift), unused[4] = {v_set1(0), v_set1(0), v_set1(0), v_set1(0)}, x[4];
    int64_t i = 0;
    for (; i + GROUP <= b.n; i += GROUP) {
        for (int j = 0; j < 4; j++) x[j] = load(b.p + (i + j * LANES) * size, storage);
        exp_and_add(x, 4, shifts, limits, unused, kept + i, GROUP);
    }
    for (; i < b.n; i += LANES) {
        int64_t n = b.n - i < LANES ? b.n - i : LANES;
        x[0] = n == LANES ? load(b.p + i * size, storage) : load_first(b.p + i * size, n, -INFINITY, storage);
        exp_and_add(x, 1, shifts, limits, unused, kept + i, n);
    }
}

/* Mass of q in a block, and the sum of q_k (shift - x_k) where q_k > 0. Returns whether all of q are finite and not
 * negative. */
static INLINE bool block_distance(block b, const real *q, real shift, double *mass, double *distance,
                                  fastce_dtype storage) {
    enum { GROUPS_A_FLUSH = 4 };
    const ptrdiff_t size = storage_size(storage);
    const vec zero = v_set1(0), shifts = v_set1(shift);
    wide masses = w_zero(), distances = w_zero();
    vec m[4], d[4], lowest[4];
    for (int j = 0; j < 4; j++) m[j] = d[j] = lowest[j] = zero;
    int64_t i = 0;
    for (int groups = 0; i + GROUP <= b.n; i += GROUP) {
        for (int j = 0; j < 4; j++) {
            vec qs = v_load(q + i + j * LANES), x = load(b.p + (i + j * LANES) * size, storage);
            m[j] = v_add(m[j], qs);
            lowest[j] = v_min(lowest[j], qs);
            d[j] = v_fma(qs, v_select(v_gt(qs, zero), v_sub(shifts, x), zero), d[j]);
        }
        if (++groups % GROUPS_A_FLUSH == 0) {
            flush(&masses, m);
            flush(&distances, d);
        }
    }
    for (int j = 0; i < b.n; i += LANES, j++) {
        int64_t n = b.n - i < LANES ? b.n - i : LANES;
        vec qs = n == LANES ? v_load(q + i) : v_load_first(q + i, n, zero);
        vec x = n == LANES ? load(b.p + i * size, storage) : load_first(b.p + i * size, n, 0, storage);
        m[j] = v_add(m[j], qs);
        lowest[j] = v_min(lowest[j], qs);
        d[j] = v_fma(qs, v_select(v_gt(qs, zero), v_sub(shifts, x), zero), d[j]);
    }
    flush(&masses, m);
    flush(&distances, d);
    *mass = w_total(masses);
    *distance = w_total(distances);
    for (int j = 1; j < 4; j++) lowest[0] = v_min(lowest[0], lowest[j]);
    /* What is not finite, or so large that its sum is not, is looked at again. */
    return !v_any(v_gt(zero, lowest[0])) && (*mass - *mass == 0 || all_are_masses((const char *)q, b.n, real_dtype()));
}

/* q_k / s of a block of a dense row, in `copy` unless it can be read where it is. NULL where a target is not valid, unless
 * the reader checks those that are read where they are. */
static const real *get_dense_block(const task *t, const char *row, int64_t first, int64_t n, real *copy,
                                   bool reader_checks) {
    const fastce_array *a = &t->problem->target;
    bool direct = a->dtype == real_dtype() && !a->byte_swapped && a->class_stride == (ptrdiff_t)sizeof(real) &&
                  (uintptr_t)row % sizeof(real) == 0;
    const real *q = direct ? (const real *)(row + first * a->class_stride) : copy;
    if (!direct) gather(copy, row + first * a->class_stride, a->class_stride, n, a->dtype, a->byte_swapped);
    const real *scales = t->q_scale, *vector = t->q_vector, uniform = (real)t->problem->target_scale;
    const bool as_it_is = direct && !scales && !vector && uniform == 1;
    if (!(as_it_is && reader_checks) && !all_are_masses((const char *)q, n, real_dtype())) return NULL;
    if (as_it_is) return q;
    for (int64_t k = 0; k < n; k++) {
        real scale = scales ? scales[first + k] : uniform;
        copy[k] = scale * q[k] + (vector ? vector[first + k] : 0);
    }
    return copy;
}

/* Scratch of the kernel: exponentials of a row, the shift of each of its blocks, and a block of x, q and output. */
typedef struct row_scratch {
    real *kept, *shifts, *x, *q, *out;
    real *staged;            /* rows of the visit, which will leave together; NULL where each goes out by itself */
    bool scales[VISIT_ROWS]; /* which of them are staged as exponentials, all of q on their label */
} row_scratch;

static size_t kept_classes(int64_t n_classes) {
    return n_classes <= KEPT_CLASSES ? (size_t)(n_classes + GROUP) / GROUP * GROUP : 0;
}

/* Of rows that leave past the cache short ones gather until they fill many whole lines; others leave one by one, where
 * the row is known from its exponentials and one factor while the next is computed. */
static bool rows_are_staged(const task *t) { return t->stream && t->problem->n_classes <= MOST_STAGED; }

static bool rows_overlap(const task *t) {
    return t->stream && !t->needs_max && t->problem->n_classes > MOST_STAGED && t->problem->n_classes <= KEPT_CLASSES;
}

static bool rows_are_short(const task *t) { return !t->needs_max && t->problem->n_classes <= SHORT_CLASSES; }

/* More than one row is kept where short ones are computed at once, and twice as many where those that leave do so while
 * others fill. */
static size_t rows_kept(const task *t) { return (rows_are_short(t) ? ROWS_AT_ONCE : 1) * (rows_overlap(t) ? 2 : 1); }

/* From one kept row to the next: a row that leaves may take along what is left of the line before it. */
static size_t kept_step(const task *t) { return MOST_OF_A_LINE + kept_classes(t->problem->n_classes); }

/* From one staged row to the next: whole lines. */
static int64_t staged_step(const task *t) {
    enum { LINE = LINE_BYTES / sizeof(real) };
    return (t->problem->n_classes + LINE - 1) / LINE * LINE;
}

static size_t rows_scratch_bytes(const task *t) {
    int64_t classes = t->problem->n_classes;
    size_t kept = t->problem->out.data ? kept_classes(classes) : 0, staged = rows_are_staged(t) ? 2 * STAGED_ROOM : 0;
    size_t reals = kept_step(t) * rows_kept(t) + kept / BLOCK_CLASSES + 1 + 3 * (BLOCK_CLASSES + GROUP) + staged;
    return reals * sizeof(real) + 2 * LINE_BYTES;
}

/* Where rows are kept: of those that overlap the one, or the set, that does not leave. */
static real *kept_rows(const task *t, const chunk_state *state, char *scratch) {
    const size_t set = rows_overlap(t) && state->filling ? rows_kept(t) / 2 : 0;
    return (real *)scratch + MOST_OF_A_LINE + set * kept_step(t);
}

static row_scratch lay_out_rows(const task *t, const chunk_state *state, char *scratch) {
    int64_t classes = t->problem->n_classes;
    size_t kept = t->problem->out.data ? kept_classes(classes) : 0;
    row_scratch w = {.kept = kept_rows(t, state, scratch)};
    w.x = (real *)scratch + kept_step(t) * rows_kept(t);
    w.q = w.x + BLOCK_CLASSES + GROUP;
    w.out = w.q + BLOCK_CLASSES + GROUP;
    w.shifts = w.out + BLOCK_CLASSES + GROUP;
    char *end = (char *)(w.shifts + kept / BLOCK_CLASSES + 1);
    w.staged = (real *)(end + -(uintptr_t)end % LINE_BYTES);
    if (rows_are_staged(t)) w.staged += state->filling * STAGED_ROOM;
    return w;
}

/* Lets the staged rows of the visit leave; the next gather in the other buffer. */
static INLINE void flush_stage(const task *t, const rows *r, results *s, row_scratch *w, chunk_state *state,
                               outgoing *o, fastce_dtype storage) {
    const int64_t n_classes = t->problem->n_classes, step = staged_step(t), count = r->count;
    real *const factor = w->staged + STAGED_REALS + GROUP;
    gradients g;
    if (t->problem->z_loss != 0) find_log_totals(s, 0, count);
    if (t->focal) find_slopes(t, s, 0, count);
    if (t->plain)
        find_plain_gradients(t, r, s, 0, count, &g);
    else if (!t->needs_max)
        find_even_gradients(t, r, s, 0, count, &g);
    for (int64_t i = 0; i < count; i++) {
        real *e = w->staged + i * step;
        factor[i] = 1;
        if (!w->scales[i]) continue;
        for (int64_t k = 0; k < n_classes && g.any_lowered; k++) e[k] *= g.lowered[i];
        if (t->plain) { /* the label's is the factor times this, too */
            factor[i] = g.factor[i];
            e[r->label[i]] = -s->rest[i] * (g.any_lowered ? g.lowered[i] : 1);
            continue;
        }
        const vec factors = v_set1(g.factor[i]), constants = v_set1(g.constant[i]);
        for (int64_t k = 0; k < n_classes; k += LANES) v_store(e + k, v_fma(factors, v_load(e + k), constants));
        e[r->label[i]] = g.at_label[i];
    }
    finish_sending(o, storage);
    *o = rows_that_leave(w->staged, factor, r->out + row_of(r, 0) * r->out_step, count, n_classes, step);
    begin_sending(o, storage);
    state->filling = !state->filling;
}

/* Sum of exp(x_k - x_label) over the other classes: no maximum needed, and the loss is its log1p, however small. Not
 * finite, or above LARGEST_SHIFTED_SUM, where the row needs its maximum after all. With the sum of x_label - x_k where some
 * of q is spread evenly. */
static INLINE double shifted_sum(const task *t, const char *row, int64_t label, real shift, row_scratch *w, bool keep,
                                 double *spread, ptrdiff_t ahead, outgoing *o, bool direct, fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const bool spreads = t->even_q != 0;
    double sum = 0, lost = 0, spread_lost = 0;
    *spread = 0;
    if (shift - shift != 0) return INFINITY;
    if (q->n_classes <= BLOCK_CLASSES) {
        block b = get_block(&q->logits, row, 0, q->n_classes, direct, w->x);
        sum = block_exp_sum(b, shift, label, keep ? w->kept : NULL, ahead, NULL, o, storage);
        if (spreads) *spread = block_spread(b, shift, storage);
        if (keep) w->shifts[0] = shift;
    }
    for (int64_t first = 0; first < q->n_classes && q->n_classes > BLOCK_CLASSES; first += BLOCK_CLASSES) {
        block b = get_block(&q->logits, row, first, q->n_classes, direct, w->x);
        add_exactly(&sum, &lost,
                    block_exp_sum(b, shift, label - first, keep ? w->kept + first : NULL, STREAM_AHEAD_BYTES, NULL, o,
                                  storage));
        if (spreads) add_exactly(spread, &spread_lost, block_spread(b, shift, storage));
        if (keep) w->shifts[first / BLOCK_CLASSES] = shift;
    }
    if (keep) w->kept[label] = 1;
    if (*spread <= DBL_MAX) *spread += spread_lost;
    return sum + lost;
}

typedef struct max_result {
    real max;
    double rest, mass, distance;
    bool bad; /* dense target */
} max_result;

/* Maximum, and sum of the others' exponentials: blocks merge as the maximum grows. With q also its mass and distance. */
static INLINE max_result max_and_rest(const task *t, const char *row, const char *dense, row_scratch *w, bool keep,
                                      bool direct, fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const bool dense_neighbours = q->target_kind == FASTCE_DENSE && q->target.class_stride == storage_size(storage);
    max_result s = {.max = -INFINITY, .rest = -1};
    double rest_lost = 0, mass_lost = 0, distance_lost = 0;
    /* The next block, whose maximum is looked for before its exponentials. */
    const ptrdiff_t ahead = BLOCK_CLASSES * storage_size(storage) < q->n_classes * storage_size(storage)
                                ? BLOCK_CLASSES * storage_size(storage)
                                : AHEAD_BYTES;
    for (int64_t first = 0; first < q->n_classes; first += BLOCK_CLASSES) {
        block b = get_block(&q->logits, row, first, q->n_classes, direct, w->x);
        real block_maximum = block_max(b, storage);
        int64_t excluded = -1;
        if (block_maximum > s.max) {
            real rise = block_maximum - s.max;
            double scale = (double)exp_one(-rise);
            s.rest = (1 + s.rest) * scale;
            rest_lost *= scale;
            if (s.mass > 0) add_exactly(&s.distance, &distance_lost, (double)rise * s.mass);
            s.max = block_maximum;
            excluded = block_find(b, block_maximum, storage);
        }
        real shift = s.max == -INFINITY ? 0 : s.max;
        real *kept = keep ? w->kept + first : NULL;
        const char *beside = dense_neighbours ? dense + first * storage_size(storage) : NULL;
        add_exactly(&s.rest, &rest_lost, block_exp_sum(b, shift, excluded, kept, ahead, beside, NULL, storage));
        if (keep) {
            if (excluded >= 0) kept[excluded] = 1;
            w->shifts[first / BLOCK_CLASSES] = shift;
        }
        const real *qs = t->q_vector ? (const real *)t->q_vector + first : NULL;
        if (q->target_kind == FASTCE_DENSE) {
            qs = get_dense_block(t, dense, first, b.n, w->q, true);
            s.bad = s.bad || !qs;
        }
        if (qs) {
            double mass, distance;
            s.bad = !block_distance(b, qs, shift, &mass, &distance, storage) || s.bad;
            add_exactly(&s.mass, &mass_lost, mass);
            add_exactly(&s.distance, &distance_lost, distance);
        }
    }
    s.rest += rest_lost;
    s.mass += mass_lost;
    if (s.distance <= DBL_MAX) s.distance += distance_lost;
    return s;
}

/* The gradient from the exponentials of a block, which are shifted by the row's maximum where at_max. */
static INLINE vec scaled(vec e, const real *q, int64_t n, const gradient *g, bool at_max) {
    vec x = v_fma(v_set1(g->factor), e, v_set1(g->constant));
    if (!q) return x;
    vec qs = n < LANES ? v_load_first(q, n, v_set1(0)) : v_load(q);
    x = v_fma(v_set1(g->q_factor), qs, x);
    if (!at_max) return x;
    vec top = v_fma(v_sub(v_set1(g->total), qs), v_set1(g->share), v_set1(g->pull));
    return v_select(v_eq(e, v_set1(1)), v_fma(v_set1(g->lost), qs, top), x);
}

/* Writes a block of a gradient, or of probabilities; in whole lines past the cache where it streams. */
static INLINE void write_block_as(char *out, const real *e, const real *q, const gradient *g, bool at_max, int64_t n,
                                  fastce_dtype storage, bool stream) {
    const ptrdiff_t size = storage_size(storage);
    int64_t i = 0, head = stream ? (int64_t)(-(uintptr_t)out % 64) / size : 0;
    while (i < head && i < n) {
        int64_t count = head - i < LANES ? head - i : LANES;
        if (count > n - i) count = n - i;
        vec x = scaled(v_load_first(e + i, count, v_set1(0)), q ? q + i : NULL, count, g, at_max);
        store_first(out + i * size, x, count, storage);
        i += count;
    }
    for (; i + LANES <= n; i += LANES)
        store(out + i * size, scaled(v_load(e + i), q ? q + i : NULL, LANES, g, at_max), storage, stream);
    if (i < n) {
        vec x = scaled(v_load_first(e + i, n - i, v_set1(0)), q ? q + i : NULL, n - i, g, at_max);
        store_first(out + i * size, x, n - i, storage);
    }
}

static INLINE void write_block(char *out, const real *e, const real *q, const gradient *g, bool at_max, int64_t n,
                               fastce_dtype storage, bool stream) {
    if (q)
        write_block_as(out, e, q, g, at_max, n, storage, stream);
    else if (stream)
        write_block_as(out, e, NULL, g, false, n, storage, true);
    else
        write_block_as(out, e, NULL, g, false, n, storage, false);
}

/* out_k = (x_k - max) - log1p(rest) for a block. */
static INLINE void write_log_block(real *out, block b, real max, real log_total, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    const vec m = v_set1(max), l = v_set1(log_total);
    for (int64_t i = 0; i < b.n; i += LANES) {
        int64_t n = b.n - i < LANES ? b.n - i : LANES;
        vec x = n == LANES ? load(b.p + i * size, storage) : load_first(b.p + i * size, n, 0, storage);
        v_store(out + i, v_sub(v_sub(x, m), l));
    }
}

static INLINE void write_row(const task *t, const rows *r, results *s, int64_t i, row_scratch *w, bool keep,
                             bool direct, fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const char *row = r->logits + row_of(r, i) * r->logits_step;
    const char *dense = r->dense + row_of(r, i) * r->dense_step;
    char *out = r->out + row_of(r, i) * r->out_step;
    int64_t label = r->label[i];
    real max = s->max[i];
    bool log_softmax = q->output == FASTCE_LOG_SOFTMAX;
    if (log_softmax || q->z_loss != 0) s->log_total[i] = log1p_one(s->rest[i]);
    real log_total = s->log_total[i];
    const bool even =
        !t->needs_max && s->sound[i] != 0; /* q is its label's mass and what the gradient's constant has */
    s->label_exp[i] = label < 0 ? 0 : s->label_logit[i] == max ? 1 : exp_one(s->label_logit[i] - max);
    const gradient g = gradient_of_row(t, r, s, i);
    real *staged = w->staged ? w->kept : NULL;
    bool stream = t->stream && (uintptr_t)out % (uintptr_t)storage_size(storage) == 0;
    for (int64_t first = 0; first < q->n_classes; first += BLOCK_CLASSES) {
        int64_t n = q->n_classes - first < BLOCK_CLASSES ? q->n_classes - first : BLOCK_CLASSES;
        real *e = w->kept + first;
        const real *qs = t->q_vector && !even ? (const real *)t->q_vector + first : NULL;
        gradient block_gradient = g;
        bool at_max = true;
        if (log_softmax) {
            write_log_block(w->out, get_block(&q->logits, row, first, q->n_classes, direct, w->x), max, log_total,
                            storage);
            e = w->out;
        } else if (!keep) {
            block_exp(get_block(&q->logits, row, first, q->n_classes, direct, w->x), max, w->out, storage);
            e = w->out;
        } else if (w->shifts[first / BLOCK_CLASSES] != max) {
            block_gradient.factor *= exp_one(w->shifts[first / BLOCK_CLASSES] - max);
            at_max = false;
        }
        for (int64_t k = 0; k < n && g.lowered != 1; k++) e[k] *= g.lowered;
        if (q->target_kind == FASTCE_DENSE) qs = get_dense_block(t, dense, first, n, w->q, true);
        char *to = out + first * q->out.class_stride;
        if (staged) {
            write_block((char *)staged, e, qs, &block_gradient, at_max, n, real_dtype(), false);
        } else if (t->out_direct) {
            write_block(to, e, qs, &block_gradient, at_max, n, storage, stream);
        } else {
            write_block((char *)w->out, e, qs, &block_gradient, at_max, n, real_dtype(), false);
            scatter(to, q->out.class_stride, w->out, n, q->out.dtype, q->out.byte_swapped);
        }
    }
    if (staged && q->output == FASTCE_GRAD && label >= 0) {
        staged[label] = g.at_label;
    } else if (q->output == FASTCE_GRAD && label >= 0) {
        scatter(out + label * q->out.class_stride, 0, &g.at_label, 1, q->out.dtype, q->out.byte_swapped);
    }
}

/* The gradient of a row that is ignored. */
static void write_zeros(const task *t, const rows *r, int64_t i, row_scratch *w) {
    const fastce_array *a = &t->problem->out;
    int64_t n_classes = t->problem->n_classes;
    if (w->staged) {
        memset(w->kept, 0, (size_t)n_classes * sizeof(real));
        return;
    }
    if (t->stream) {
        stream_zeros(r->out + row_of(r, i) * r->out_step, n_classes * a->class_stride);
        return;
    }
    memset(w->out, 0, BLOCK_CLASSES * sizeof(real));
    for (int64_t first = 0; first < n_classes; first += BLOCK_CLASSES) {
        int64_t n = n_classes - first < BLOCK_CLASSES ? n_classes - first : BLOCK_CLASSES;
        scatter(r->out + row_of(r, i) * r->out_step + first * a->class_stride, a->class_stride, w->out, n, a->dtype,
                a->byte_swapped);
    }
}

/* Lets the row whose exponentials are kept leave, its label having served as maximum; the next is kept in the other
 * buffer. */
static INLINE void leave(const task *t, const rows *r, results *s, int64_t i, row_scratch *w, chunk_state *state,
                         outgoing *o, fastce_dtype storage) {
    const int64_t n_classes = t->problem->n_classes, room = MOST_OF_A_LINE + (int64_t)kept_classes(n_classes);
    real *e = w->kept;
    if (t->problem->z_loss != 0) s->log_total[i] = log1p_one(s->rest[i]);
    const gradient g = gradient_of_row(t, r, s, i);
    for (int64_t k = 0; k < n_classes && g.lowered != 1; k++) e[k] *= g.lowered;
    const outgoing next = {.from = e,
                           .to = r->out + row_of(r, i) * r->out_step,
                           .count = n_classes,
                           .label = r->label[i],
                           .factor = (double)g.factor,
                           .constant = (double)g.constant,
                           .at_label = (double)g.at_label};
    send_next(o, next, storage);
    w->kept += state->filling ? -room : room;
    state->filling = !state->filling;
}

/* Row i through its maximum; false where its dense target is not acceptable. */
static INLINE bool reduce_row_by_max(const task *t, const rows *r, results *s, int64_t i, row_scratch *w, bool keep,
                                     bool direct, fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const char *row = r->logits + row_of(r, i) * r->logits_step, *dense = r->dense + row_of(r, i) * r->dense_step;
    max_result m = max_and_rest(t, row, dense, w, keep, direct, storage);
    if (m.bad) return false;
    set_result(s, i, m.max, m.rest);
    s->mass[i] = r->label_mass[i] + r->weight[i] * t->q_vector_sum;
    s->z[i] = (real)(r->weight[i] * q->z_loss);
    double distance = r->weight[i] * m.distance;
    if (r->label[i] >= 0 && r->label_mass[i] > 0) distance += r->label_mass[i] * (double)(m.max - s->label_logit[i]);
    s->distance[i] = (real)distance;
    if (q->target_kind == FASTCE_DENSE) {
        s->mass[i] = r->weight[i] * m.mass;
        s->unit_mass[i] = m.mass;
    }
    return true;
}

static INLINE real load_logit(const task *t, const char *row, int64_t k, bool direct, fastce_dtype storage) {
    const fastce_array *a = &t->problem->logits;
    if (direct) return load_one(row + k * storage_size(storage), storage);
    return (real)load_number(row + k * a->class_stride, a->dtype, a->byte_swapped);
}

/* The label's logit of row i served as its maximum. */
static INLINE void set_shifted(const task *t, const rows *r, results *s, int64_t i, double sum, double spread) {
    s->sound[i] = 1;
    s->max[i] = s->label_logit[i];
    s->rest[i] = (real)sum;
    s->mass[i] = r->label_mass[i] + r->weight[i] * t->q_vector_sum;
    s->distance[i] = (real)(r->weight[i] * t->even_q * spread);
    s->z[i] = (real)(r->weight[i] * t->problem->z_loss);
}

/* Short rows of the visit, those at `at`, shifted by their labels' logits. */
static INLINE void sum_short_rows(const task *t, const rows *r, const int64_t *at, int64_t count, short_rows *g,
                                  row_scratch *w, int64_t ahead, bool keep, outgoing *o, bool direct,
                                  fastce_dtype storage) {
    const int64_t n_classes = t->problem->n_classes, size = (count + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE * ROWS_AT_ONCE;
    const ptrdiff_t bytes = LANES * storage_size(storage), step = r->logits_step;
    const bool packed = rows_are_packed(&t->problem->logits, step, r, n_classes);
    g->ahead_step = packed ? ROWS_AT_ONCE * bytes : bytes;
    g->further = packed ? STREAM_FURTHER_BYTES : 0;
    if (packed && direct) {
        const char *const base = r->logits + r->first * step, *const ahead_of = base + STREAM_AHEAD_BYTES;
        for (int64_t j = 0; j < count; j++) g->p[j] = base + at[j] * step;
        for (int64_t j = 0; j < size; j++)
            g->ahead[j] =
                ahead_of + (at[j / ROWS_AT_ONCE * ROWS_AT_ONCE] + ROWS_AT_ONCE) * step + j % ROWS_AT_ONCE * bytes;
    } else {
        for (int64_t j = 0; j < count; j++) {
            const char *row = r->logits + row_of(r, at[j]) * step;
            const int64_t next = at[j] + ahead < r->count ? at[j] + ahead : r->count - 1;
            g->p[j] =
                get_block(&t->problem->logits, row, 0, n_classes, direct, w->x + j % ROWS_AT_ONCE * SHORT_CLASSES).p;
            g->ahead[j] = packed ? row + ROWS_AT_ONCE * step + STREAM_AHEAD_BYTES : r->logits + row_of(r, next) * step;
        }
    }
    for (int64_t j = 0; j < count; j++) g->label[j] = r->label[at[j]];
    for (int64_t j = count; j < size; j++) { /* some row again, to fill up the last */
        g->p[j] = g->p[0];
        g->label[j] = g->label[0];
        g->kept[j] = g->kept[0];
        if (!(packed && direct)) g->ahead[j] = g->ahead[0];
    }
    const bool spreads = t->even_q != 0;
#ifdef REAL_HAS_HALVES
    if (storage == FASTCE_F16) return sum_short_f16(g, size, n_classes, keep, spreads, o);
    if (storage == FASTCE_BF16) return sum_short_bf16(g, size, n_classes, keep, spreads, o);
#endif
    sum_short_real(g, size, n_classes, keep, spreads, o);
}

/* From its sum to the results of row i and to its output; false where its dense target is not acceptable. */
static INLINE bool settle_row(const task *t, const rows *r, results *s, int64_t i, double sum, double spread,
                              row_scratch *w, bool keep, bool *plain, chunk_state *state, outgoing *o, bool direct,
                              fastce_dtype storage) {
    const bool sound = sum <= LARGEST_SHIFTED_SUM;
    if (sound) {
        set_shifted(t, r, s, i, sum, spread);
        if (t->focal && t->problem->out.data && !w->staged) s->slope[i] = slope_of_one(t->problem, s->rest[i]);
    } else {
        s->sound[i] = 0;
        *plain = false;
        if (!reduce_row_by_max(t, r, s, i, w, keep, direct, storage)) return false;
    }
    if (w->staged && sound)
        w->scales[i] = true;
    else if (rows_overlap(t) && sound)
        leave(t, r, s, i, w, state, o, storage);
    else if (t->problem->out.data)
        write_row(t, r, s, i, w, keep, direct, storage);
    return true;
}

/* From where a row of one block is read to what is asked for meanwhile: the stream of rows, or the next one of those that
 * are strewn, and nothing between. */
static INLINE ptrdiff_t bytes_to_next(const rows *r, int64_t i) {
    if (r->consecutive) return STREAM_AHEAD_BYTES;
    return i + 1 < r->count ? (row_of(r, i + 1) - row_of(r, i)) * r->logits_step : 0;
}

/* Asks for what no stream brings of a row that is visited soon: the label's logit, and rows that are not consecutive. */
static INLINE void expect_row(const task *t, const rows *r, int64_t i) {
    if (i >= r->count) return;
    const fastce_problem *q = t->problem;
    const char *row = r->logits + row_of(r, i) * r->logits_step;
    if (r->label[i] >= 0) __builtin_prefetch(row + r->label[i] * q->logits.class_stride);
    if (r->consecutive) return;
    const ptrdiff_t size = q->n_classes * q->logits.class_stride;
    if (t->needs_max || q->n_classes > BLOCK_CLASSES) prefetch(row, size < AHEAD_BYTES ? size : AHEAD_BYTES);
    if (!t->stream) return;
    const char *out = r->out + row_of(r, i) * r->out_step;
    __builtin_prefetch(out, 1);
    __builtin_prefetch(out + size, 1);
}

/* Results of short rows from their sums; returns whether each label's logit can serve as maximum. */
static INLINE bool take_sums(const short_rows *g, const int64_t *at, int64_t count, results *s) {
    int64_t refused = 0;
    for (int64_t j = 0; j < count; j++) {
        const int64_t i = at[j];
        s->label_logit[i] = g->shift[j];
        s->rest[i] = (real)g->sum[j];
        s->sound[i] = 1;
        refused |= !(g->sum[j] <= LARGEST_SHIFTED_SUM) | !(g->shift[j] - g->shift[j] == 0);
    }
    return refused == 0;
}

/* Lists the next rows of the visit, up to `batch`, that are not ignored; of the others it settles what there is. Returns
 * how many it lists, and steps over all. */
static INLINE int64_t next_rows_of(const task *t, const rows *r, results *s, int64_t batch, int64_t *next,
                                   row_scratch *w, int64_t *at) {
    int64_t count = 0;
    if (r->all_kept) {
        count = r->count - *next < batch ? r->count - *next : batch;
        for (int64_t j = 0; j < count; j++) at[j] = *next + j;
        *next += count;
        return count;
    }
    for (; *next < r->count && count < batch; ++*next) {
        const int64_t i = *next;
        if (r->weight[i] != 0) {
            at[count++] = i;
            continue;
        }
        s->sound[i] = s->max[i] = s->rest[i] = s->distance[i] = s->z[i] = 0, s->mass[i] = 0;
        if (w->staged) w->kept = w->staged + i * staged_step(t);
        if (t->problem->out.data) write_zeros(t, r, i, w);
    }
    return count;
}

static INLINE int64_t visit_rows_as(const task *t, rows *r, chunk_state *state, char *scratch, bool direct,
                                    fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const bool keep = q->out.data && q->output != FASTCE_LOG_SOFTMAX && q->n_classes <= KEPT_CLASSES;
    const bool sets_leave = rows_overlap(t) && rows_are_short(t), short_ones = rows_are_short(t);
    const bool strewn = !short_ones && (!r->consecutive || q->n_classes > BLOCK_CLASSES);
    row_scratch w = lay_out_rows(t, state, scratch);
    if (!rows_are_staged(t) || !rows_are_packed(&q->out, r->out_step, r, q->n_classes)) w.staged = NULL;
    const int64_t row_bytes = q->n_classes * storage_size(storage), stage_step = staged_step(t);
    const int64_t ahead = ROWS_AT_ONCE * ((AHEAD_BYTES + ROWS_AT_ONCE * row_bytes - 1) / (ROWS_AT_ONCE * row_bytes));
    const bool waits = short_ones && direct && (w.staged || !q->out.data);
    const int64_t batch = waits ? batch_of_short(q->n_classes) : short_ones ? ROWS_AT_ONCE : 1;
    outgoing o = state->outgoing;
    results s;
    bool plain = t->plain;
    for (int64_t i = r->count; i % GROUP != 0; i++) s.rest[i] = 0;
    if (w.staged) memset(w.scales, 0, sizeof w.scales);
    for (int64_t next = 0; next < r->count;) {
        int64_t at[BATCH_ROWS];
        short_rows g;
        const int filling = state->filling;
        const void *const leaving = o.from;
        if (strewn) expect_row(t, r, next + (r->consecutive ? 1 : 3));
        const int64_t count = next_rows_of(t, r, &s, batch, &next, &w, at);
        bool settled = false;
        if (short_ones && count > 0) {
            const real *const kept = kept_rows(t, state, scratch);
            for (int64_t j = 0; j < count && keep; j++)
                g.kept[j] = w.staged ? w.staged + at[j] * stage_step : (real *)kept + j * (int64_t)kept_step(t);
            sum_short_rows(t, r, at, count, &g, &w, ahead, keep, t->stream ? &o : NULL, direct, storage);
            settled = take_sums(&g, at, count, &s) && t->plain && waits;
            for (int64_t j = 0; j < count && w.staged; j++) w.scales[at[j]] = settled;
        }
        for (int64_t j = 0; j < count && !settled; j++) {
            const int64_t i = at[j];
            double sum = INFINITY, spread = 0;
            if (w.staged) w.kept = w.staged + i * stage_step;
            if (!short_ones)
                s.label_logit[i] = r->label[i] < 0 ? 0
                                                   : load_logit(t, r->logits + row_of(r, i) * r->logits_step,
                                                                r->label[i], direct, storage);
            const real shift = s.label_logit[i];
            if (short_ones) {
                sum = g.sum[j];
                spread = t->even_q != 0 ? g.spread[j] : 0;
                if (keep) {
                    w.kept = g.kept[j];
                    w.kept[r->label[i]] = 1;
                    w.shifts[0] = shift;
                }
            } else if (!t->needs_max) {
                sum = shifted_sum(t, r->logits + row_of(r, i) * r->logits_step, r->label[i], shift, &w, keep, &spread,
                                  bytes_to_next(r, i), t->stream ? &o : NULL, direct, storage);
            }
            if (shift - shift != 0) sum = INFINITY;
            if (!settle_row(t, r, &s, i, sum, spread, &w, keep, &plain, state, &o, direct, storage)) {
                state->outgoing = o;
                return i;
            }
        }
        if (sets_leave) state->filling = o.from != leaving ? !filling : filling; /* the next fill the other set */
    }
    for (int64_t i = 0; i < r->count && t->plain && !plain; i++) /* those before, or beside, one that was not */
        if (s.sound[i] != 0) set_shifted(t, r, &s, i, (double)s.rest[i], 0);
    if (w.staged) flush_stage(t, r, &s, &w, state, &o, storage);
    state->outgoing = o;
    finish(t, r, &s, plain, state);
    write_values(r, s.value);
    return -1;
}

static int64_t visit_rows(const task *t, rows *r, chunk_state *state, char *scratch) {
#ifdef REAL_HAS_HALVES
    if (t->logits_direct && t->problem->logits.dtype == FASTCE_F16)
        return visit_rows_as(t, r, state, scratch, true, FASTCE_F16);
    if (t->logits_direct && t->problem->logits.dtype == FASTCE_BF16)
        return visit_rows_as(t, r, state, scratch, true, FASTCE_BF16);
#endif
    if (t->logits_direct) return visit_rows_as(t, r, state, scratch, true, real_dtype());
    return visit_rows_as(t, r, state, scratch, false, real_dtype());
}

/* Sums of lanes in float64 where the lanes are no narrower: with what rounding loses of them. An ISA's file has the same
 * for float32. */

typedef struct wide {
    vec sum, lost;
} wide;

static inline wide w_zero(void) { return (wide){v_set1(0), v_set1(0)}; }

static inline wide w_add(wide w, vec a) {
    vec sum = v_add(w.sum, a), added = v_sub(sum, w.sum);
    return (wide){sum, v_add(w.lost, v_add(v_sub(w.sum, v_sub(sum, added)), v_sub(a, added)))};
}

static inline void w_store(wide w, double *sums, double *lost) {
    v_store(sums, w.sum);
    v_store(lost, w.lost);
}

static inline double w_total(wide w) {
    double sum = 0, lost = 0, sums[LANES], losts[LANES];
    v_store(sums, w.sum);
    v_store(losts, w.lost);
    for (int i = 0; i < LANES; i++) add_exactly(&sum, &lost, sums[i]), lost += losts[i];
    return sum - sum == 0 ? sum + lost : sum; /* beside infinity, what was lost is NaN */
}

/* The same in memory. */
static inline void v_accumulate(double *sums, double *lost, vec a) {
    wide w = w_add((wide){v_load(sums), v_load(lost)}, a);
    v_store(sums, w.sum);
    v_store(lost, w.lost);
}

static inline void v_clear(double *sums, double *lost) {
    v_store(sums, v_set1(0));
    v_store(lost, v_set1(0));
}

static inline vec v_from_doubles(const double *p) { return v_load(p); }

/* A tile: some classes of all rows of a visit, class k of row i at [k * VISIT_ROWS + i], in the type of the arithmetic.
 * Rows come in and go out by 16 bytes at a time where their classes are neighbours, else element by element. */

enum { TILE_CLASSES = FEW_CLASSES, TILE_SIZE = TILE_CLASSES * VISIT_ROWS };

/* Columns of rows whose classes are neighbouring reals. Rows shorter than a piece need readable memory behind the last. */
static void transpose_in(real *to, const char *p, ptrdiff_t step, int64_t count, int64_t n, outgoing *o) {
    const int64_t whole = count / LANES * LANES;
    const bool pairs = n == 2 && step == 2 * (ptrdiff_t)sizeof(real);
    for (int64_t i = 0; i < whole && pairs; i += LANES) {
        vec a[2] = {v_load((const real *)(p + i * step)), v_load((const real *)(p + i * step) + LANES)};
        send_line(o);
        v_unzip(a);
        for (int j = 0; j < 2; j++) v_store(&to[j * VISIT_ROWS + i], a[j]);
    }
    for (int64_t i = 0; i < whole && !pairs; i += LANES)
        for (int64_t k = 0; k < n; k += COLUMNS) {
            int64_t first = k + COLUMNS <= n || n < COLUMNS ? k : n - COLUMNS; /* the last overlaps the one before */
            vec a[COLUMNS];
            send_line(o);
            for (int j = 0; j < COLUMNS; j++)
                a[j] = v_load_pieces(p + (i + j) * step + first * (ptrdiff_t)sizeof(real), step);
            v_transpose(a);
            for (int j = 0; j < COLUMNS; j++) v_store(&to[(first + j) * VISIT_ROWS + i], a[j]);
        }
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = whole; i < count; i++)
            memcpy(&to[k * VISIT_ROWS + i], p + i * step + k * (ptrdiff_t)sizeof(real), sizeof(real));
}

/* The rows of a tile to neighbouring reals, rows at a distance of step. */
static void transpose_out(char *to, ptrdiff_t step, const real *from, int64_t count, int64_t n, outgoing *o) {
    const bool pairs = n == 2 && step == 2 * (ptrdiff_t)sizeof(real);
    const int64_t whole = n < COLUMNS && !pairs ? 0 : count / LANES * LANES;
    for (int64_t i = 0; i < whole && pairs; i += LANES) {
        vec a[2] = {v_load(&from[i]), v_load(&from[VISIT_ROWS + i])};
        send_line(o);
        v_zip(a);
        for (int j = 0; j < 2; j++) v_store((real *)(to + i * step) + j * LANES, a[j]);
    }
    for (int64_t i = 0; i < whole && !pairs; i += LANES)
        for (int64_t k = 0; k < n; k += COLUMNS) {
            int64_t first = k + COLUMNS <= n ? k : n - COLUMNS;
            vec a[COLUMNS];
            send_line(o);
            for (int j = 0; j < COLUMNS; j++) a[j] = v_load(&from[(first + j) * VISIT_ROWS + i]);
            v_transpose(a);
            for (int j = 0; j < COLUMNS; j++)
                v_store_pieces(to + (i + j) * step + first * (ptrdiff_t)sizeof(real), step, a[j]);
        }
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = whole; i < count; i++)
            memcpy(to + i * step + k * (ptrdiff_t)sizeof(real), &from[k * VISIT_ROWS + i], sizeof(real));
}

static INLINE void widen(real *to, const char *p, int64_t n, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    for (int64_t i = 0; i < n; i += LANES) {
        if (n - i < LANES)
            v_store_first(to + i, load_first(p + i * size, n - i, 0, storage), n - i);
        else
            v_store(to + i, load(p + i * size, storage));
    }
}

static bool dtype_is_vector(fastce_dtype dtype) {
    if (dtype == real_dtype()) return true;
    return sizeof(real) == 4 && (dtype == FASTCE_F16 || dtype == FASTCE_BF16);
}

static void widen_as(real *to, const char *p, int64_t n, fastce_dtype dtype) {
#ifdef REAL_HAS_HALVES
    if (dtype == FASTCE_F16) {
        widen(to, p, n, FASTCE_F16);
        return;
    }
    if (dtype == FASTCE_BF16) {
        widen(to, p, n, FASTCE_BF16);
        return;
    }
#endif
    (void)dtype;
    widen(to, p, n, real_dtype());
}

/* Whether the positions of the rows are neighbours in memory, for each class. */
static bool positions_are_packed(const fastce_array *a, ptrdiff_t step, const rows *r) {
    return r->consecutive && step == dtype_size(a->dtype) && !a->byte_swapped && dtype_is_vector(a->dtype);
}

/* Whether an array's rows, n classes each, follow each other in memory without gaps. */
static bool rows_are_packed(const fastce_array *a, ptrdiff_t step, const rows *r, int64_t n) {
    return r->consecutive && a->class_stride == dtype_size(a->dtype) && step == n * a->class_stride && !a->byte_swapped;
}

/* Classes [first, first + n) of an array; lanes up to the next whole group become 0. flat has TILE_SIZE. */
static void load_tile(real *to, real *flat, const fastce_array *a, const char *base, ptrdiff_t step, const rows *r,
                      int64_t first, int64_t n, outgoing *o) {
    const bool neighbours = a->class_stride == dtype_size(a->dtype) && !a->byte_swapped && dtype_is_vector(a->dtype);
    base += first * a->class_stride;
    if (positions_are_packed(a, step, r)) {
        for (int64_t k = 0; k < n; k++)
            widen_as(&to[k * VISIT_ROWS], base + r->first * step + k * a->class_stride, r->count, a->dtype);
    } else if (neighbours) {
        const char *p = base + r->first * step;
        const bool packed = rows_are_packed(a, step, r, n);
        const bool real_rows = r->consecutive && a->dtype == real_dtype();
        if (!real_rows || (n < COLUMNS && !(n == 2 && packed))) {
            int64_t runs = packed ? 1 : r->count, length = packed ? r->count * n : n;
            for (int64_t i = 0; i < runs; i++)
                widen_as(flat + i * n, packed ? p : base + row_of(r, i) * step, length, a->dtype);
            p = (const char *)flat;
            step = n * (ptrdiff_t)sizeof(real);
        }
        transpose_in(to, p, step, r->count, n, o);
    } else {
        for (int64_t k = 0; k < n; k++)
            for (int64_t i = 0; i < r->count; i++)
                gather(&to[k * VISIT_ROWS + i], base + row_of(r, i) * step + k * a->class_stride, 0, 1, a->dtype,
                       a->byte_swapped);
    }
    for (int64_t k = 0; k < n && r->count % GROUP != 0; k++) {
        int64_t i = r->count;
        for (; i % LANES != 0; i++) to[k * VISIT_ROWS + i] = 0;
        for (; i % GROUP != 0; i += LANES) v_store(&to[k * VISIT_ROWS + i], v_set1(0));
    }
}

/* Writes n reals to neighbouring elements, in whole lines past the cache where it streams. */
static INLINE void narrow(char *to, const real *from, int64_t n, fastce_dtype storage, bool stream) {
    const ptrdiff_t size = storage_size(storage);
    int64_t i = 0, head = stream ? (int64_t)(-(uintptr_t)to % 64) / size : 0;
    for (int64_t count; i < head && i < n; i += count) {
        count = head - i < LANES ? head - i : LANES;
        if (count > n - i) count = n - i;
        store_first(to + i * size, v_load_first(from + i, count, v_set1(0)), count, storage);
    }
    for (; i + LANES <= n; i += LANES) store(to + i * size, v_load(from + i), storage, stream);
    if (i < n) store_first(to + i * size, v_load_first(from + i, n - i, v_set1(0)), n - i, storage);
}

static void narrow_as(char *to, const real *from, int64_t n, fastce_dtype dtype, bool stream) {
    stream = stream && (uintptr_t)to % (uintptr_t)storage_size(dtype) == 0;
#ifdef REAL_HAS_HALVES
    if (dtype == FASTCE_F16) {
        narrow(to, from, n, FASTCE_F16, stream);
        return;
    }
    if (dtype == FASTCE_BF16) {
        narrow(to, from, n, FASTCE_BF16, stream);
        return;
    }
#endif
    narrow(to, from, n, real_dtype(), stream);
}

static void store_tile(const task *t, const real *from, real *flat, const rows *r, int64_t first, int64_t n) {
    const fastce_array *a = &t->problem->out;
    bool vectors = a->class_stride == dtype_size(a->dtype) && !a->byte_swapped && dtype_is_vector(a->dtype);
    char *base = r->out + first * a->class_stride;
    if (positions_are_packed(a, r->out_step, r)) {
        for (int64_t k = 0; k < n; k++)
            narrow_as(base + r->first * r->out_step + k * a->class_stride, from + k * VISIT_ROWS, r->count, a->dtype,
                      false);
        return;
    }
    const bool packed = rows_are_packed(a, r->out_step, r, n), stream = packed && t->stream;
    if (vectors && a->dtype == real_dtype() && r->consecutive && !stream) {
        outgoing none = {0};
        transpose_out(base + r->first * r->out_step, r->out_step, from, r->count, n, &none);
        return;
    }
    outgoing none = {0};
    transpose_out((char *)flat, n * (ptrdiff_t)sizeof(real), from, r->count, n, &none);
    if (vectors && packed) {
        narrow_as(base + r->first * r->out_step, flat, r->count * n, a->dtype, t->stream);
        return;
    }
    for (int64_t i = 0; i < r->count; i++) {
        char *to = base + row_of(r, i) * r->out_step;
        if (vectors)
            narrow_as(to, flat + i * n, n, a->dtype, false);
        else
            scatter(to, a->class_stride, flat + i * n, n, a->dtype, a->byte_swapped);
    }
}

/* Sends what is outgoing, a group of vectors at a time: see core.h. */

enum { PAGE_BYTES = 4096, LINE_BYTES = 64, MOST_OF_A_LINE = LINE_BYTES / 2 /* elements */ };

/* Reals that are sent as they are. */
static INLINE outgoing as_they_are(const real *from, char *to, int64_t count) {
    return (outgoing){.from = from, .to = to, .count = count, .label = -1, .factor = 1, .constant = NOTHING};
}

/* Rows of classes that follow each other where they go, each times a factor of its own: they lie at a distance of step,
 * and a vector behind them, as well as the factors, can be read. No shorter than a vector, and no more than 2^16 reals. */
static INLINE outgoing rows_that_leave(const real *from, const real *factors, char *to, int64_t count, int64_t classes,
                                       int64_t step) {
    outgoing o = as_they_are(from, to, count * classes);
    o.factors = factors;
    o.classes = classes;
    o.step = step;
    o.inverse = ((uint64_t)1 << 32) / (uint64_t)classes + 1;
    return o;
}

/* A vector of them from element i on. */
static INLINE vec vector_of_rows(const outgoing *o, int64_t i) {
    const int64_t row = (int64_t)((uint64_t)i * o->inverse >> 32), column = i - row * o->classes;
    const real *const factor = (const real *)o->factors + row, *const from = (const real *)o->from + row * o->step;
    const vec x = v_mul(v_set1(factor[0]), v_load(from + column));
    const int64_t left = o->classes - column;
    if (left >= LANES) return x;
    const vec next = v_mul(v_set1(factor[1]), v_load(from + o->step - left));
    return v_select(v_gt(v_set1((real)(int32_t)left), v_iota()), x, next);
}

/* Up to a vector of what goes out, from element i on, n of them. */
static INLINE vec outgoing_vector(const outgoing *o, int64_t i, int64_t n) {
    if (o->factors) return vector_of_rows(o, i);
    const real *from = (const real *)o->from + i;
    const vec e = n < LANES ? v_load_first(from, n, v_set1(0)) : v_load(from), lane = v_iota();
    vec x = v_fma(v_set1((real)o->factor), e, v_set1((real)o->constant));
    x = v_select(v_eq(lane, v_set1((real)(o->label - i))), v_set1((real)o->at_label), x);
    return v_select(v_gt(v_set1((real)(o->final - i)), lane), e, x);
}

/* Of a line that is not whole: through the cache. */
static INLINE void send_part(outgoing *o, int64_t n, fastce_dtype storage) {
    store_first(o->to + o->sent * storage_size(storage), outgoing_vector(o, o->sent, n), n, storage);
    o->sent += n;
}

/* A store waits for the translation of its page, and all later ones with it: the next page's is fetched ahead. */
static INLINE void expect_page(const char *to, ptrdiff_t size) {
    if (((uintptr_t)to & (PAGE_BYTES - 1)) < (uintptr_t)size) __builtin_prefetch(to + PAGE_BYTES);
}

/* A line of reals as they are, where so much is left: strewn over what is computed, as memory takes lines one at a time. */
static INLINE void send_line(outgoing *o) {
    enum { LINE = LINE_BYTES / sizeof(real) };
    if (o->count - o->sent < LINE) return;
    const real *from = (const real *)o->from + o->sent;
    real *to = (real *)o->to + o->sent;
    expect_page((char *)to, LINE_BYTES);
    for (int i = 0; i < LINE; i += LANES) v_stream(to + i, v_load(from + i));
    o->sent += LINE;
}

/* A group of vectors, where so much is left. */
static INLINE void send_group(outgoing *o, fastce_dtype storage) {
    if (o->count - o->sent < GROUP) return;
    const ptrdiff_t size = storage_size(storage);
    const real *from = (const real *)o->from + o->sent;
    char *to = o->to + o->sent * size;
    expect_page(to, GROUP * size);
    if (o->factors || (uint64_t)(o->label - o->sent) < GROUP || o->sent < o->final) {
        for (int j = 0; j < 4; j++)
            store(to + j * LANES * size, outgoing_vector(o, o->sent + j * LANES, LANES), storage, true);
    } else {
        const vec factor = v_set1((real)o->factor), constant = v_set1((real)o->constant);
        for (int j = 0; j < 4; j++)
            store(to + j * LANES * size, v_fma(factor, v_load(from + j * LANES), constant), storage, true);
    }
    o->sent += GROUP;
}

/* Sends up to the first whole line. The last line, if not whole, is written through the cache: it is fetched ahead. */
static INLINE void begin_sending(outgoing *o, fastce_dtype storage) {
    __builtin_prefetch(o->to + o->count * storage_size(storage), 1);
    int64_t head = (int64_t)(-(uintptr_t)o->to % LINE_BYTES) / storage_size(storage);
    if (head > o->count) head = o->count;
    for (; head >= LANES; head -= LANES) send_part(o, LANES, storage);
    if (head > 0) send_part(o, head, storage);
}

/* Sends all whole lines. */
static INLINE void send_lines(outgoing *o, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    while (o->count - o->sent >= GROUP) send_group(o, storage);
    while ((o->count - o->sent) * size >= LINE_BYTES)
        for (int64_t end = o->sent + LINE_BYTES / size; o->sent < end; o->sent += LANES)
            store(o->to + o->sent * size, outgoing_vector(o, o->sent, LANES), storage, true);
}

static INLINE void finish_sending(outgoing *o, fastce_dtype storage) {
    send_lines(o, storage);
    while (o->sent < o->count) send_part(o, o->count - o->sent < LANES ? o->count - o->sent : LANES, storage);
}

/* Sends `next` after what is outgoing. Where it follows in memory, its first line takes along what is left of the last:
 * in its final form, in front of the reals of `next`, where there is room for MOST_OF_A_LINE. */
static INLINE void send_next(outgoing *o, outgoing next, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    send_lines(o, storage);
    const int64_t left = o->count - o->sent;
    if (left == 0 || o->to + o->count * size != next.to) {
        finish_sending(o, storage);
        *o = next;
        begin_sending(o, storage);
        return;
    }
    real *joined = (real *)next.from - left;
    for (int64_t i = 0; i < left; i += LANES) {
        const int64_t n = left - i < LANES ? left - i : LANES;
        v_store_first(joined + i, outgoing_vector(o, o->sent + i, n), n);
    }
    next.from = joined;
    next.to -= left * size;
    next.count += left;
    next.label += next.label < 0 ? 0 : left;
    next.final = left;
    *o = next;
}

static void stream_zeros(char *p, ptrdiff_t bytes) {
    const ptrdiff_t to_line = (ptrdiff_t)(-(uintptr_t)p % LINE_BYTES), head = to_line < bytes ? to_line : bytes;
    char *end = p + bytes;
    memset(p, 0, (size_t)head);
    for (p += head; end - p >= LINE_BYTES; p += LINE_BYTES)
        for (int i = 0; i < LINE_BYTES; i += (int)sizeof(vec)) v_stream((real *)(p + i), v_set1(0));
    memset(p, 0, (size_t)(end - p));
}

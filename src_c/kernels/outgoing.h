/* Sends what is outgoing, a group of vectors at a time: see core.h. */

enum { PAGE_BYTES = 4096, LINE = 64 / sizeof(real) };

static INLINE void send_part(outgoing *o, int64_t n, fastce_dtype storage) {
    const real *from = o->from;
    store_first(o->to, v_mul(v_set1((real)o->factor), v_load_first(from, n, v_set1(0))), n, storage);
    *o = (outgoing){from + n, o->to + n * storage_size(storage), o->left - n, o->factor};
}

/* A store waits for the translation of its page, and all later ones with it: the next page's is fetched ahead. */
static INLINE void expect_page(const char *to, ptrdiff_t size) {
    if (((uintptr_t)to & (PAGE_BYTES - 1)) < (uintptr_t)size) __builtin_prefetch(to + PAGE_BYTES);
}

/* A line, where so much is left: strewn over what is computed, as memory takes lines one at a time. */
static INLINE void send_line(outgoing *o) {
    if (o->left < LINE) return;
    const real *from = o->from;
    expect_page(o->to, 64);
    for (int i = 0; i < LINE; i += LANES) v_stream((real *)o->to + i, v_mul(v_set1((real)o->factor), v_load(from + i)));
    *o = (outgoing){from + LINE, o->to + 64, o->left - LINE, o->factor};
}

static INLINE void send_group(outgoing *o, fastce_dtype storage) {
    const vec factor = v_set1((real)o->factor);
    const real *from = o->from;
    expect_page(o->to, GROUP * storage_size(storage));
    for (int j = 0; j < 4; j++)
        store(o->to + j * LANES * storage_size(storage), v_mul(factor, v_load(from + j * LANES)), storage, true);
    *o = (outgoing){from + GROUP, o->to + GROUP * storage_size(storage), o->left - GROUP, o->factor};
}

/* Sends up to the first whole line. The last line, if not whole, is written through the cache: it is fetched ahead. */
static INLINE void begin_sending(outgoing *o, fastce_dtype storage) {
    __builtin_prefetch(o->to + o->left * storage_size(storage), 1);
    int64_t head = (int64_t)(-(uintptr_t)o->to % 64) / storage_size(storage);
    if (head > o->left) head = o->left;
    for (; head >= LANES; head -= LANES) send_part(o, LANES, storage);
    if (head > 0) send_part(o, head, storage);
}

static INLINE void finish_sending(outgoing *o, fastce_dtype storage) {
    while (o->left >= GROUP) send_group(o, storage);
    for (; o->left >= LANES; o->left -= LANES) {
        const real *from = o->from;
        store(o->to, v_mul(v_set1((real)o->factor), v_load(from)), storage, true);
        o->from = from + LANES;
        o->to += LANES * storage_size(storage);
    }
    if (o->left > 0) send_part(o, o->left, storage);
}

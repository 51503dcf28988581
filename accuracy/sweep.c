/* The largest error of the kernels' functions, in units in the last place, with its argument.
 *
 *     sweep EVERY FUNCTION
 *
 * float32: every EVERY-th number of the whole range, against the C library's functions in double; 1 leaves none out.
 * float64: a sample, the smaller the larger EVERY, against those in long double. For both also the neighbours of the
 * places where something is decided (halves of an exponential's steps, powers of two and those times sqrt 2), and those
 * of the worst that was found. A line is: function, dtype, ISA, error, argument, value, how many arguments were tried. */
#include "sweep.h"

#include "isa.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct arithmetic {
    const char *name;
    int bytes, bits, lowest; /* of a number; of its mantissa; the exponent of the smallest normal one */
} arithmetic;

static const arithmetic f32 = {"float32", 4, 23, -126}, f64 = {"float64", 8, 52, -1022};

static const char *const function_names[FUNCTIONS] = {"exp",          "log1p",         "log1p_of_fraction", "log",
                                                      "log_of_many",  "log1p_of_many", "log1m_of_many",     "tanh",
                                                      "sech_squared", "power"};

/* A result above 0 and below this may be lost: the smallest normal number, or the like of 4 times an exponential. */
static double lost_below(const arithmetic *t, int function) {
    if (function == SECH_SQUARED) return ldexp(8, t->lowest);
    return function == EXP || function == POWER ? ldexp(1, t->lowest) : 0;
}

#define DECLARE(isa) extern const functions swept_##isa##_f32, swept_##isa##_f64;
#define SWEPT_F32(isa) &swept_##isa##_f32,
#define SWEPT_F64(isa) &swept_##isa##_f64,
FASTCE_ISAS(DECLARE)
static const functions *const of_f32[] = {FASTCE_ISAS(SWEPT_F32)}, *const of_f64[] = {FASTCE_ISAS(SWEPT_F64)};
enum { ISAS = sizeof of_f32 / sizeof *of_f32 };

typedef struct worst {
    double error, argument, value;
} worst;

typedef struct sweep {
    const arithmetic *type;
    int function;
    double lowest, highest; /* arguments lie above the one, and up to the other */
    int64_t tried;
    worst worst[ISAS];
} sweep;

static long double exact_of(const sweep *s, double x) {
    const bool narrow = s->type == &f32;
    if (s->function == EXP) return narrow ? exp(x) : expl(x);
    if (s->function == LOG || s->function == LOG_OF_MANY) return narrow ? log(x) : logl(x);
    if (s->function == LOG1M_OF_MANY) return narrow ? log1p(-x) : log1pl(-(long double)x);
    if (s->function == TANH) return narrow ? tanh(x) : tanhl(x);
    if (s->function == POWER) return narrow ? pow(x, SWEPT_EXPONENT) : powl(x, (long double)SWEPT_EXPONENT);
    if (s->function == SECH_SQUARED && narrow) return 1 / (cosh(x) * cosh(x));
    if (s->function == SECH_SQUARED) return 1 / (coshl(x) * coshl(x));
    return narrow ? log1p(x) : log1pl(x);
}

/* In ULP of the exact value. */
static double error_of(const sweep *s, double got, long double exact) {
    const arithmetic *t = s->type;
    int exponent;
    frexp((double)exact, &exponent);
    /* Towards zero: the spacing below a power of two is that of the binade below. */
    if (fabsl((long double)(double)exact) > fabsl(exact) && fabs(frexp((double)exact, &exponent)) == 0.5) exponent--;
    exponent = exact == 0 || exponent - 1 < t->lowest ? t->lowest : exponent - 1;
    double off = (double)fabsl(got - exact);
    const double lost = lost_below(t, s->function);
    if (lost > 0 && exact < lost) return off <= lost ? 0 : INFINITY;
    double error = off * ldexp(1, t->bits - exponent > 1023 ? 1023 : t->bits - exponent);
    if (t->bits - exponent > 1023) error *= ldexp(1, t->bits - exponent - 1023);
    return error - error == 0 ? error : INFINITY;
}

/* The same for float32, quickly. */
static double error_of_float(float got, double exact, double lost) {
    uint64_t bits;
    memcpy(&bits, &exact, sizeof bits);
    uint64_t field = bits >> 52 & 0x7ff, lowest = 1023 - 126;
    bits = (2 * 1023 + 23 - (field > lowest ? field : lowest)) << 52;
    double scale, off = fabs(got - exact);
    memcpy(&scale, &bits, sizeof scale);
    if (lost > 0 && exact < lost) return off <= lost ? 0 : INFINITY;
    return off - off == 0 ? off * scale : INFINITY;
}

static void note(sweep *s, int isa, double error, double argument, double value) {
    worst *w = &s->worst[isa];
#pragma omp critical
    if (error > w->error || (error == w->error && argument < w->argument)) *w = (worst){error, argument, value};
}

static void try_floats(sweep *s, const float *x, int64_t count) {
    const double lost = lost_below(&f32, s->function);
    float got[CHUNK];
    double exact[CHUNK];
    for (int64_t i = 0; i < count; i++) exact[i] = (double)exact_of(s, x[i]);
    for (int isa = 0; isa < ISAS; isa++) {
        if (!fastce_isa_runs(fastce_isa_names()[isa])) continue;
        memcpy(got, x, sizeof got);
        of_f32[isa]->replace[s->function](got, CHUNK);
        double largest = -1;
        int64_t at = 0;
        for (int64_t i = 0; i < count; i++) {
            double error = error_of_float(got[i], exact[i], lost);
            if (error > largest) largest = error, at = i;
        }
        note(s, isa, largest, x[at], got[at]);
    }
#pragma omp atomic
    s->tried += count;
}

static void try_doubles(sweep *s, const double *x, int64_t count) {
    double got[CHUNK];
    long double exact[CHUNK];
    for (int64_t i = 0; i < count; i++) exact[i] = exact_of(s, x[i]);
    for (int isa = 0; isa < ISAS; isa++) {
        if (!fastce_isa_runs(fastce_isa_names()[isa])) continue;
        memcpy(got, x, sizeof got);
        of_f64[isa]->replace[s->function](got, CHUNK);
        for (int64_t i = 0; i < count; i++) {
            double error = error_of(s, got[i], exact[i]);
            if (error > s->worst[isa].error) note(s, isa, error, x[i], got[i]);
        }
    }
#pragma omp atomic
    s->tried += count;
}

/* --- arguments ------------------------------------------------------------------------------------------------------ */

/* A chunk that is tried when it is full. */
typedef struct chunk {
    sweep *sweep;
    int64_t count;
    union {
        float f32[CHUNK];
        double f64[CHUNK];
    } x;
} chunk;

static void flush(chunk *c) {
    if (c->count && c->sweep->type == &f32) try_floats(c->sweep, c->x.f32, c->count);
    if (c->count && c->sweep->type == &f64) try_doubles(c->sweep, c->x.f64, c->count);
    c->count = 0;
}

static void add(chunk *c, double x) {
    if (!(x > c->sweep->lowest && x <= c->sweep->highest)) return;
    if (c->sweep->type == &f32)
        c->x.f32[c->count++] = (float)x;
    else
        c->x.f64[c->count++] = x;
    if (c->count == CHUNK) flush(c);
}

/* Numbers as integers in their order: those of either sign count away from zero. */
static double number(const arithmetic *t, int64_t place) {
    uint64_t bits = (uint64_t)(place < 0 ? -place - 1 : place);
    uint32_t half = (uint32_t)bits;
    float narrow;
    double wide;
    memcpy(&narrow, &half, sizeof narrow);
    memcpy(&wide, &bits, sizeof wide);
    if (t->bytes == 4) wide = narrow;
    return place < 0 ? -wide : wide;
}

static int64_t place(const arithmetic *t, double x) {
    double size = fabs(x);
    float narrow = (float)size;
    uint32_t half;
    uint64_t bits;
    memcpy(&half, &narrow, sizeof half);
    memcpy(&bits, &size, sizeof bits);
    if (t->bytes == 4) bits = half;
    return signbit(x) ? -(int64_t)bits - 1 : (int64_t)bits;
}

static void add_neighbours(chunk *c, double x, int64_t count) {
    int64_t middle = place(c->sweep->type, x);
    for (int64_t i = -count; i <= count; i++) add(c, number(c->sweep->type, middle + i));
}

static void try_decisions(sweep *s, int neighbours) {
    enum { STEPS = 32 }; /* halves of the steps of any ISA's table */
    static const double ln2 = 0x1.62e42fefa39efp-1, sqrt2 = 0x1.6a09e667f3bcdp+0;
    chunk c = {.sweep = s};
    int most = s->type->bytes == 4 ? 128 : 1024;
    if (s->function == EXP)
        for (int n = -most * STEPS; n < most * STEPS; n++) add_neighbours(&c, n * (ln2 / STEPS), neighbours);
    if (s->function == TANH || s->function == SECH_SQUARED) {
        for (int n = 0; n < most * STEPS; n++) add_neighbours(&c, n * (ln2 / STEPS / 2), neighbours);
        add_neighbours(&c, 0.625, 2 * neighbours);
    }
    for (int e = -most - s->type->bits; e < most; e++)
        for (int half = 0; half < 2; half++) {
            double x = ldexp(half ? sqrt2 : 1, e);
            add_neighbours(&c, x, 2 * neighbours);
            add_neighbours(&c, -x, 2 * neighbours);
            if (s->function == LOG1P) add_neighbours(&c, x - 1, 2 * neighbours);
        }
    flush(&c);
}

/* Every EVERY-th number: float32 alone has few enough. */
static void try_in_order(sweep *s, int64_t every) {
    int64_t first = place(s->type, s->lowest), last = place(s->type, s->highest), step = every * CHUNK;
#pragma omp parallel for schedule(dynamic, 64)
    for (int64_t begin = first; begin <= last; begin += step) {
        chunk c = {.sweep = s};
        for (int64_t i = begin; i < begin + step && i <= last; i += every) add(&c, number(s->type, i));
        flush(&c);
    }
}

static uint64_t random_bits(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Half of them even among the numbers, half even on the line between -EVEN and EVEN. */
static void try_sample(sweep *s, int64_t count) {
    const bool is_steep = s->function == SECH_SQUARED; /* and 0 far from 0 */
    double even = s->function == EXP ? s->highest : s->function == TANH ? 20 : is_steep ? 360 : 2;
    int64_t first = place(s->type, s->lowest), last = place(s->type, s->highest);
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t begin = 0; begin < count; begin += CHUNK) {
        chunk c = {.sweep = s};
        uint64_t state = (uint64_t)begin;
        for (int64_t i = 0; i < CHUNK / 2; i++) {
            uint64_t bits = random_bits(&state);
            add(&c, number(s->type, first + (int64_t)(bits % (uint64_t)(last - first))));
            add(&c, (2 * (double)(random_bits(&state) >> 11) * 0x1p-53 - 1) * even);
        }
        flush(&c);
    }
}

/* At random distances of every size, again and again: beside the worst there are worse. */
static void try_beside_the_worst(sweep *s, int rounds) {
    enum { NEIGHBOURS = 1 << 12, SAME_BITS = 6 };
    uint64_t state = 0;
    for (int round = 0; round < rounds; round++) {
        worst found[ISAS];
        memcpy(found, s->worst, sizeof found);
        chunk c = {.sweep = s};
        for (int isa = 0; isa < ISAS; isa++)
            for (int i = 0; i < NEIGHBOURS && found[isa].error >= 0; i++) {
                int size = (int)(random_bits(&state) % (uint64_t)(s->type->bits - SAME_BITS));
                int64_t distance = (int64_t)(random_bits(&state) >> (63 - size)) - ((int64_t)1 << size);
                add(&c, number(s->type, place(s->type, found[isa].argument) + distance));
            }
        flush(&c);
    }
}

static void report(const arithmetic *t, int function, int64_t every) {
    enum { SAMPLE = 1 << 26, QUICK = 1000 };
    bool quick = every >= QUICK;
    const functions *any = t == &f32 ? of_f32[0] : of_f64[0];
    sweep s = {.type = t, .function = function};
    const double largest = t == &f32 ? FLT_MAX : DBL_MAX, below_normal = t == &f32 ? 0x1.fffffcp-127 : 0x1p-1022;
    const double below_one = t == &f32 ? 0x1.fffffep-1 : 0x1.fffffffffffffp-1;
    s.lowest = function == EXP ? -INFINITY : function == LOG1P ? -1 : function == POWER ? below_normal : 0;
    s.highest = function == EXP                                      ? any->exp_highest
                : function == LOG1P || function == LOG1P_OF_MANY     ? any->log1p_highest
                : function == LOG1P_OF_FRACTION || function == POWER ? 1
                : function == LOG1M_OF_MANY                          ? below_one
                                                                     : largest;
    for (int isa = 0; isa < ISAS; isa++) s.worst[isa].error = -1;
    if (t == &f32) try_in_order(&s, every);
    if (t == &f64) try_sample(&s, every > 1 ? SAMPLE / every : SAMPLE);
    if (t == &f64 || every > 1) try_decisions(&s, quick ? 1 : 16), try_beside_the_worst(&s, quick ? 2 : 256);
    for (int isa = 0; isa < ISAS; isa++)
        if (s.worst[isa].error >= 0)
            printf("%s %s %s %.6f %a %a %lld\n", function_names[function], t->name, fastce_isa_names()[isa],
                   s.worst[isa].error, s.worst[isa].argument, s.worst[isa].value, (long long)s.tried);
    fflush(stdout);
}

int main(int count, char **arguments) {
    int64_t every = count == 3 ? atoll(arguments[1]) : 0;
    for (int function = 0; function < FUNCTIONS && every >= 1; function++) {
        if (strcmp(arguments[2], function_names[function]) != 0) continue;
        report(&f32, function, every);
        report(&f64, function, every);
        return EXIT_SUCCESS;
    }
    fprintf(stderr, "usage: %s EVERY FUNCTION, of", arguments[0]);
    for (int function = 0; function < FUNCTIONS; function++) fprintf(stderr, " %s", function_names[function]);
    fprintf(stderr, "\n");
    return EXIT_FAILURE;
}

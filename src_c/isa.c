/* Which instruction sets this processor runs. */
#include "isa.h"

#include <string.h>

static bool portable_runs(void) { return true; }

#if defined(__x86_64__)
#include <cpuid.h>

/* Not every compiler's __builtin_cpu_supports knows f16c. */
static bool f16c_runs(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static bool avx2_runs(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c_runs(); }

static bool avx512_runs(void) {
    return avx2_runs() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#elif defined(__aarch64__)
static bool neon_runs(void) { return true; }
#endif

#define DECLARE(name) extern const kernels fastce_##name##_f32, fastce_##name##_f64;
#define ROW(name) {#name, name##_runs, &fastce_##name##_f32, &fastce_##name##_f64},
#define NAME(name) #name,

FASTCE_ISAS(DECLARE)

static const isa isas[] = {FASTCE_ISAS(ROW)};

static const char *const names[] = {FASTCE_ISAS(NAME) NULL};

const char *const *fastce_isa_names(void) { return names; }

const isa *find_isa(const char *name) {
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++)
        if ((!name || !strcmp(name, isas[i].name)) && isas[i].runs()) return &isas[i];
    return NULL;
}

int fastce_isa_runs(const char *name) { return name && find_isa(name) != NULL; }

/* Which instruction sets this processor runs. */
#include "isa.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

#define CPU_FEATURES(X) X(avx2) X(fma) X(f16c) X(avx512f) X(avx512bw) X(avx512dq) X(avx512vl)
#define HAS(name)                                                                                                      \
    static int has_##name(void) { return __builtin_cpu_supports(#name) != 0; }
HAS(avx2)
HAS(fma)
HAS(avx512f)
HAS(avx512bw)
HAS(avx512dq)
HAS(avx512vl)

/* Not every compiler's __builtin_cpu_supports knows it. Asked once: under a hypervisor the question takes microseconds. */
static bool f16c;

__attribute__((constructor)) static void look_for_f16c(void) {
    unsigned a, b, c, d;
    f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static int has_f16c(void) { return f16c; }

static bool avx2_runs(void) { return has_avx2() && has_fma() && has_f16c(); }

static bool avx512_runs(void) {
    return avx2_runs() && has_avx512f() && has_avx512bw() && has_avx512dq() && has_avx512vl();
}
#elif defined(__aarch64__)
#define CPU_FEATURES(X) X(asimd)
static int has_asimd(void) { return 1; } /* part of the architecture */

static bool neon_runs(void) { return has_asimd(); }
#else
#define CPU_FEATURES(X)
#endif

static bool portable_runs(void) { return true; }

#define FEATURE_NAME(name) #name,
#define FEATURE_TEST(name) has_##name,

static const char *const feature_names[] = {CPU_FEATURES(FEATURE_NAME) NULL};

static int (*const feature_tests[])(void) = {CPU_FEATURES(FEATURE_TEST) NULL};

const char *const *fastce_cpu_feature_names(void) { return feature_names; }

int fastce_cpu_has(const char *feature) {
    for (int i = 0; feature && feature_names[i]; i++)
        if (!strcmp(feature, feature_names[i])) return feature_tests[i]();
    return 0;
}

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

/* Four doubles: AVX2 and FMA. */
#if defined(__x86_64__)
#include "../core.h"
#include "../kernels/real_f64.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

enum { LANES = 4 };
typedef __m256d vec;
typedef __m256i ivec;
typedef __m256d mask;

static inline vec v_set1(real x) { return _mm256_set1_pd(x); }
static inline vec v_iota(void) { return _mm256_setr_pd(0, 1, 2, 3); }
static inline vec v_add(vec a, vec b) { return _mm256_add_pd(a, b); }
static inline vec v_sub(vec a, vec b) { return _mm256_sub_pd(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm256_mul_pd(a, b); }
static inline vec v_div(vec a, vec b) { return _mm256_div_pd(a, b); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_pd(a, b, c); }
static inline vec v_max(vec a, vec b) { return _mm256_max_pd(a, b); }
static inline vec v_min(vec a, vec b) { return _mm256_min_pd(a, b); }
static inline mask v_eq(vec a, vec b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
static inline mask v_gt(vec a, vec b) { return _mm256_cmp_pd(a, b, _CMP_GT_OQ); }
static inline bool v_any(mask m) { return _mm256_movemask_pd(m) != 0; }
static inline vec v_select(mask m, vec a, vec b) { return _mm256_blendv_pd(b, a, m); }

static inline ivec v_bits(vec a) { return _mm256_castpd_si256(a); }
static inline vec v_from_bits(ivec a) { return _mm256_castsi256_pd(a); }
static inline ivec i_set1(real_bits x) { return _mm256_set1_epi64x((long long)x); }
static inline ivec i_or(ivec a, ivec b) { return _mm256_or_si256(a, b); }
static inline ivec i_sub(ivec a, ivec b) { return _mm256_sub_epi64(a, b); }
static inline ivec i_to_exponent(ivec a) { return _mm256_slli_epi64(a, MANTISSA_BITS); }
static inline ivec i_from_exponent(ivec a) { return _mm256_srli_epi64(a, MANTISSA_BITS); }

static inline __m256i first_lanes(int64_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
static inline vec v_load(const real *p) { return _mm256_loadu_pd(p); }
static inline void v_store(real *p, vec a) { _mm256_storeu_pd(p, a); }
static inline void v_stream(real *p, vec a) { _mm256_stream_pd(p, a); }
static inline vec v_load_first(const real *p, int64_t n, vec rest) {
    __m256i m = first_lanes(n);
    return _mm256_blendv_pd(rest, _mm256_maskload_pd(p, m), _mm256_castsi256_pd(m));
}
static inline void v_store_first(real *p, vec a, int64_t n) { _mm256_maskstore_pd(p, first_lanes(n), a); }

/* See avx512_f32.c. */
enum { COLUMNS = 2 };
static inline vec v_load_pieces(const char *p, ptrdiff_t step) {
    __m256d a = _mm256_castpd128_pd256(_mm_loadu_pd((const double *)p));
    return _mm256_insertf128_pd(a, _mm_loadu_pd((const double *)(p + 2 * step)), 1);
}
static inline void v_store_pieces(char *to, ptrdiff_t step, vec a) {
    _mm_storeu_pd((double *)to, _mm256_castpd256_pd128(a));
    _mm_storeu_pd((double *)(to + 2 * step), _mm256_extractf128_pd(a, 1));
}
static inline void v_transpose(vec *a) {
    __m256d low = _mm256_unpacklo_pd(a[0], a[1]);
    a[1] = _mm256_unpackhi_pd(a[0], a[1]);
    a[0] = low;
}
static inline void v_unzip(vec *a) {
    vec even = _mm256_unpacklo_pd(a[0], a[1]), odd = _mm256_unpackhi_pd(a[0], a[1]);
    a[0] = _mm256_permute4x64_pd(even, 0xd8);
    a[1] = _mm256_permute4x64_pd(odd, 0xd8);
}
static inline void v_zip(vec *a) {
    vec low = _mm256_unpacklo_pd(a[0], a[1]), high = _mm256_unpackhi_pd(a[0], a[1]);
    a[0] = _mm256_permute2f128_pd(low, high, 0x20);
    a[1] = _mm256_permute2f128_pd(low, high, 0x31);
}

static inline void v_fence(void) { _mm_sfence(); }

#include "../kernels/kernels.h"

const kernels fastce_avx2_f64 = KERNELS;

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

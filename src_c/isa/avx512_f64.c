/* Eight doubles: AVX-512 F, BW, DQ and VL. */
#if defined(__x86_64__)
#include "../core.h"
#include "../kernels/real_f64.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))),              \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

enum { LANES = 8 };
typedef __m512d vec;
typedef __m512i ivec;
typedef __mmask8 mask;

static inline vec v_set1(real x) { return _mm512_set1_pd(x); }
static inline vec v_iota(void) { return _mm512_setr_pd(0, 1, 2, 3, 4, 5, 6, 7); }
static inline vec v_add(vec a, vec b) { return _mm512_add_pd(a, b); }
static inline vec v_sub(vec a, vec b) { return _mm512_sub_pd(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm512_mul_pd(a, b); }
static inline vec v_div(vec a, vec b) { return _mm512_div_pd(a, b); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_pd(a, b, c); }
static inline vec v_max(vec a, vec b) { return _mm512_max_pd(a, b); }
static inline vec v_min(vec a, vec b) { return _mm512_min_pd(a, b); }
static inline mask v_eq(vec a, vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
static inline mask v_gt(vec a, vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
static inline bool v_any(mask m) { return m != 0; }
static inline vec v_select(mask m, vec a, vec b) { return _mm512_mask_blend_pd(m, b, a); }

static inline ivec v_bits(vec a) { return _mm512_castpd_si512(a); }
static inline vec v_from_bits(ivec a) { return _mm512_castsi512_pd(a); }
static inline ivec i_set1(real_bits x) { return _mm512_set1_epi64((long long)x); }
static inline ivec i_or(ivec a, ivec b) { return _mm512_or_si512(a, b); }
static inline ivec i_sub(ivec a, ivec b) { return _mm512_sub_epi64(a, b); }
static inline ivec i_to_exponent(ivec a) { return _mm512_slli_epi64(a, MANTISSA_BITS); }
static inline ivec i_from_exponent(ivec a) { return _mm512_srli_epi64(a, MANTISSA_BITS); }

static inline vec v_load(const real *p) { return _mm512_loadu_pd(p); }
static inline void v_store(real *p, vec a) { _mm512_storeu_pd(p, a); }
static inline void v_stream(real *p, vec a) { _mm512_stream_pd(p, a); }
static inline vec v_load_first(const real *p, int64_t n, vec rest) {
    return _mm512_mask_loadu_pd(rest, (__mmask8)((1u << n) - 1), p);
}
static inline void v_store_first(real *p, vec a, int64_t n) { _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), a); }

/* See avx512_f32.c. */
enum { COLUMNS = 2 };
static inline vec v_load_pieces(const char *p, ptrdiff_t step) {
    __m256d a = _mm256_castpd128_pd256(_mm_loadu_pd((const double *)p));
    __m256d b = _mm256_castpd128_pd256(_mm_loadu_pd((const double *)(p + 4 * step)));
    a = _mm256_insertf128_pd(a, _mm_loadu_pd((const double *)(p + 2 * step)), 1);
    b = _mm256_insertf128_pd(b, _mm_loadu_pd((const double *)(p + 6 * step)), 1);
    return _mm512_insertf64x4(_mm512_castpd256_pd512(a), b, 1);
}
static inline void v_store_pieces(char *to, ptrdiff_t step, vec a) {
    _mm_storeu_pd((double *)to, _mm512_castpd512_pd128(a));
    _mm_storeu_pd((double *)(to + 2 * step), _mm512_extractf64x2_pd(a, 1));
    _mm_storeu_pd((double *)(to + 4 * step), _mm512_extractf64x2_pd(a, 2));
    _mm_storeu_pd((double *)(to + 6 * step), _mm512_extractf64x2_pd(a, 3));
}
static inline void v_transpose(vec *a) {
    __m512d low = _mm512_unpacklo_pd(a[0], a[1]);
    a[1] = _mm512_unpackhi_pd(a[0], a[1]);
    a[0] = low;
}
static inline void v_unzip(vec *a) {
    const ivec first = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    vec even = _mm512_permutex2var_pd(a[0], first, a[1]);
    a[1] = _mm512_permutex2var_pd(a[0], i_or(first, i_set1(1)), a[1]);
    a[0] = even;
}
static inline void v_zip(vec *a) {
    const ivec low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    vec first = _mm512_permutex2var_pd(a[0], low, a[1]);
    a[1] = _mm512_permutex2var_pd(a[0], i_or(low, i_set1(4)), a[1]);
    a[0] = first;
}

static inline void v_fence(void) { _mm_sfence(); }

#include "../kernels/kernels.h"

const kernels fastce_avx512_f64 = KERNELS;

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

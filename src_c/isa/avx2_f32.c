/* Eight floats: AVX2, FMA and F16C. */
#if defined(__x86_64__)
#include "../core.h"
#include "../kernels/real_f32.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

enum { LANES = 8 };
typedef __m256 vec;
typedef __m256i ivec;
typedef __m256 mask;

static inline vec v_set1(real x) { return _mm256_set1_ps(x); }
static inline vec v_iota(void) { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
static inline vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline vec v_min(vec a, vec b) { return _mm256_min_ps(a, b); }
static inline mask v_eq(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static inline mask v_gt(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
static inline bool v_any(mask m) { return _mm256_movemask_ps(m) != 0; }
static inline vec v_select(mask m, vec a, vec b) { return _mm256_blendv_ps(b, a, m); }

static inline ivec v_bits(vec a) { return _mm256_castps_si256(a); }
static inline vec v_from_bits(ivec a) { return _mm256_castsi256_ps(a); }
static inline ivec i_set1(real_bits x) { return _mm256_set1_epi32((int)x); }
static inline ivec i_or(ivec a, ivec b) { return _mm256_or_si256(a, b); }
static inline ivec i_sub(ivec a, ivec b) { return _mm256_sub_epi32(a, b); }
static inline ivec i_to_exponent(ivec a) { return _mm256_slli_epi32(a, MANTISSA_BITS); }
static inline ivec i_from_exponent(ivec a) { return _mm256_srli_epi32(a, MANTISSA_BITS); }

/* See avx512_f32.c. */
#define EXP_STEPS 8
static inline ivec i_exp2(ivec n) {
    const ivec fractions = _mm256_setr_epi32(0, -0x46a3e, -0x7c810, -0xa0129, -0xafb0d, -0xa98d6, -0x8bb03, -0x53f39);
    return _mm256_add_epi32(_mm256_permutevar8x32_epi32(fractions, n), _mm256_slli_epi32(n, MANTISSA_BITS - 3));
}

static inline __m256i first_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vec v_load(const real *p) { return _mm256_loadu_ps(p); }
static inline void v_store(real *p, vec a) { _mm256_storeu_ps(p, a); }
static inline void v_stream(real *p, vec a) { _mm256_stream_ps(p, a); }
static inline vec v_load_first(const real *p, int64_t n, vec rest) {
    __m256i m = first_lanes(n);
    return _mm256_blendv_ps(rest, _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m));
}
static inline void v_store_first(real *p, vec a, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), a); }

static inline vec v_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static inline vec v_load_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
typedef __m128i half_vec;
static inline half_vec v_to_f16(vec a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline half_vec v_to_bf16(vec a) {
    __m256i u = _mm256_castps_si256(a), high = _mm256_srli_epi32(u, 16);
    __m256i even = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff))), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
static inline void v_store_half(uint16_t *p, half_vec h) { _mm_storeu_si128((__m128i *)p, h); }
static inline void v_stream_half(uint16_t *p, half_vec h) { _mm_stream_si128((__m128i *)p, h); }

static inline void v_accumulate(double *sums, double *lost, vec a) {
    (void)lost;
    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(a)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
    _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), low));
    _mm256_storeu_pd(sums + 4, _mm256_add_pd(_mm256_loadu_pd(sums + 4), high));
}
static inline void v_clear(double *sums, double *lost) {
    (void)lost;
    _mm256_storeu_pd(sums, _mm256_setzero_pd());
    _mm256_storeu_pd(sums + 4, _mm256_setzero_pd());
}
static inline vec v_from_doubles(const double *p) {
    __m128 low = _mm256_cvtpd_ps(_mm256_loadu_pd(p)), high = _mm256_cvtpd_ps(_mm256_loadu_pd(p + 4));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}
/* See avx512_f32.c. */
typedef struct wide {
    __m256d low, high;
} wide;
static inline wide w_zero(void) { return (wide){_mm256_setzero_pd(), _mm256_setzero_pd()}; }
static inline wide w_add(wide w, vec a) {
    __m128 low = _mm256_castps256_ps128(a), high = _mm256_extractf128_ps(a, 1);
    return (wide){_mm256_add_pd(w.low, _mm256_cvtps_pd(low)), _mm256_add_pd(w.high, _mm256_cvtps_pd(high))};
}
static inline void w_store(wide w, double *sums, double *lost) {
    (void)lost;
    _mm256_storeu_pd(sums, w.low);
    _mm256_storeu_pd(sums + 4, w.high);
}
static inline double w_total(wide w) {
    __m256d four = _mm256_add_pd(w.low, w.high);
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

/* See avx512_f32.c. */
enum { COLUMNS = 4 };
static inline vec v_load_pieces(const char *p, ptrdiff_t step) {
    __m256 a = _mm256_castps128_ps256(_mm_loadu_ps((const float *)p));
    return _mm256_insertf128_ps(a, _mm_loadu_ps((const float *)(p + 4 * step)), 1);
}
static inline void v_store_pieces(char *to, ptrdiff_t step, vec a) {
    _mm_storeu_ps((float *)to, _mm256_castps256_ps128(a));
    _mm_storeu_ps((float *)(to + 4 * step), _mm256_extractf128_ps(a, 1));
}
static inline void v_transpose(vec *a) {
    __m256 t0 = _mm256_unpacklo_ps(a[0], a[1]), t1 = _mm256_unpackhi_ps(a[0], a[1]);
    __m256 t2 = _mm256_unpacklo_ps(a[2], a[3]), t3 = _mm256_unpackhi_ps(a[2], a[3]);
    a[0] = _mm256_shuffle_ps(t0, t2, 0x44);
    a[1] = _mm256_shuffle_ps(t0, t2, 0xee);
    a[2] = _mm256_shuffle_ps(t1, t3, 0x44);
    a[3] = _mm256_shuffle_ps(t1, t3, 0xee);
}
static inline void v_unzip(vec *a) {
    vec even = _mm256_shuffle_ps(a[0], a[1], 0x88), odd = _mm256_shuffle_ps(a[0], a[1], 0xdd);
    a[0] = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xd8));
    a[1] = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xd8));
}
static inline void v_zip(vec *a) {
    vec low = _mm256_unpacklo_ps(a[0], a[1]), high = _mm256_unpackhi_ps(a[0], a[1]);
    a[0] = _mm256_permute2f128_ps(low, high, 0x20);
    a[1] = _mm256_permute2f128_ps(low, high, 0x31);
}

static inline void v_fence(void) { _mm_sfence(); }

#include "../kernels/kernels.h"

const kernels fastce_avx2_f32 = KERNELS;

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* Sixteen floats: AVX-512 F, BW, DQ and VL. */
#if defined(__x86_64__)
#include "../core.h"
#include "../kernels/real_f32.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))),              \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

enum { LANES = 16 };
typedef __m512 vec;
typedef __m512i ivec;
typedef __mmask16 mask;

static inline vec v_set1(real x) { return _mm512_set1_ps(x); }
static inline vec v_iota(void) { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
static inline vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline vec v_min(vec a, vec b) { return _mm512_min_ps(a, b); }
static inline mask v_eq(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline mask v_gt(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline bool v_any(mask m) { return m != 0; }
static inline vec v_select(mask m, vec a, vec b) { return _mm512_mask_blend_ps(m, b, a); }

static inline ivec v_bits(vec a) { return _mm512_castps_si512(a); }
static inline vec v_from_bits(ivec a) { return _mm512_castsi512_ps(a); }
static inline ivec i_set1(real_bits x) { return _mm512_set1_epi32((int)x); }
static inline ivec i_or(ivec a, ivec b) { return _mm512_or_si512(a, b); }
static inline ivec i_sub(ivec a, ivec b) { return _mm512_sub_epi32(a, b); }
static inline ivec i_to_exponent(ivec a) { return _mm512_slli_epi32(a, MANTISSA_BITS); }
static inline ivec i_from_exponent(ivec a) { return _mm512_srli_epi32(a, MANTISSA_BITS); }

/* The bits of 2^(n / EXP_STEPS), from an n with the bias in it: a table has the fractions, less what n's low bits add. */
#define EXP_STEPS 16
static inline ivec i_exp2(ivec n) {
    const ivec fractions =
        _mm512_setr_epi32(0, -0x2553d, -0x46a3e, -0x63c2d, -0x7c810, -0x90ace, -0xa0129, -0xaa7c1, -0xafb0d, -0xaf75c,
                          -0xa98d6, -0x9db74, -0x8bb03, -0x73321, -0x53f39, -0x2da83);
    return _mm512_add_epi32(_mm512_permutexvar_epi32(n, fractions), _mm512_slli_epi32(n, MANTISSA_BITS - 4));
}

/* Of step n, in its low bits, of a logarithm from 1 to 2: c near 1 / (1 + n / LOG_STEPS), and -log(c). */
#define LOG_STEPS 15.49f
static inline vec v_log_inverse(ivec n) {
    return _mm512_permutexvar_ps(n, _mm512_setr_ps(1, 0x1.e0e04cp-1f, 0x1.c57914p-1f, 0x1.acdd2ap-1f, 0x1.96eb86p-1f,
                                                   0x1.8321b2p-1f, 0x1.71095cp-1f, 0x1.6090b6p-1f, 0x1.51ab7ap-1f,
                                                   0x1.43ccd2p-1f, 0x1.372020p-1f, 0x1.2b6ac0p-1f, 0x1.2090e2p-1f,
                                                   0x1.1672d6p-1f, 0x1.0cd9c4p-1f, 0x1.041b98p-1f));
}
static inline vec v_log_step(ivec n) {
    return _mm512_permutexvar_ps(n, _mm512_setr_ps(0, 0x1.00e14ap-4f, 0x1.f13592p-4f, 0x1.6adff2p-3f, 0x1.d67124p-3f,
                                                   0x1.1e44f2p-2f, 0x1.4f4986p-2f, 0x1.7e0b00p-2f, 0x1.aa3f06p-2f,
                                                   0x1.d531f2p-2f, 0x1.fe1558p-2f, 0x1.12ae7ap-1f, 0x1.2594d0p-1f,
                                                   0x1.37dacep-1f, 0x1.49d078p-1f, 0x1.5abdb2p-1f));
}

/* x >= 0 as 2^e m with 1 <= m < 2: e, which is -inf for 0, and m, NaN below 0. Of the 32 steps of m: c near 1 / m, 1 in the
 * first and 1/2 in the last, and -log(c). As for LOG_STEPS a float holds it, or from the middle on what it is beside log(2). */
#define LOG_PARTS
static inline vec v_exponent(vec x) { return _mm512_getexp_ps(x); }
static inline vec v_mantissa(vec x) { return _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_nan); }
static inline vec v_scale(vec x, vec e) { return _mm512_scalef_ps(x, e); } /* x 2^e */
static inline vec v_part_inverse(vec m) {
    const vec low = _mm512_setr_ps(1, 0x1.e9108ap-1f, 0x1.dae26cp-1f, 0x1.cd9256p-1f, 0x1.c0f664p-1f, 0x1.b4f388p-1f,
                                   0x1.a9885ep-1f, 0x1.9ec00ap-1f, 0x1.94a160p-1f, 0x1.8ad852p-1f, 0x1.8193acp-1f,
                                   0x1.788730p-1f, 0x1.702518p-1f, 0x1.680344p-1f, 0x1.6062bep-1f, 0x1.58fe20p-1f);
    const vec high =
        _mm512_setr_ps(0x1.51e5bap-1f, 0x1.4b0196p-1f, 0x1.44859cp-1f, 0x1.3e3290p-1f, 0x1.37fc00p-1f, 0x1.3257b2p-1f,
                       0x1.2cb5a4p-1f, 0x1.272370p-1f, 0x1.21fda4p-1f, 0x1.1cfcc8p-1f, 0x1.18085cp-1f, 0x1.13756cp-1f,
                       0x1.0ebd74p-1f, 0x1.0a54e0p-1f, 0x1.06131ep-1f, 0.5f);
    return _mm512_permutex2var_ps(low, _mm512_srli_epi32(v_bits(m), MANTISSA_BITS - 5), high);
}
static inline vec v_part_log(vec m) {
    const vec low = _mm512_setr_ps(0, 0x1.777088p-5f, 0x1.343c96p-4f, 0x1.a8b41ap-4f, 0x1.0d13c2p-3f, 0x1.449d2ap-3f,
                                   0x1.7ad84cp-3f, 0x1.af6864p-3f, 0x1.e1ff84p-3f, 0x1.0a113ap-2f, 0x1.2263e0p-2f,
                                   0x1.3ab53ep-2f, 0x1.51c3aep-2f, 0x1.68a33ap-2f, 0x1.7e908cp-2f, 0x1.9446d4p-2f);
    const vec high =
        _mm512_setr_ps(0x1.a98e70p-2f, 0x1.bea7f2p-2f, 0x1.d2ea36p-2f, 0x1.e71168p-2f, 0x1.fb42acp-2f, 0x1.06f94ap-1f,
                       0x1.1079e0p-1f, 0x1.1a0cf6p-1f, 0x1.230f38p-1f, 0x1.2bf868p-1f, 0x1.34f342p-1f, 0x1.3d61d4p-1f,
                       0x1.463a8ep-1f, 0x1.4ea264p-1f, 0x1.56e248p-1f, 0x1.62e430p-1f);
    return _mm512_permutex2var_ps(low, _mm512_srli_epi32(v_bits(m), MANTISSA_BITS - 5), high);
}

static inline vec v_load(const real *p) { return _mm512_loadu_ps(p); }
static inline void v_store(real *p, vec a) { _mm512_storeu_ps(p, a); }
static inline void v_stream(real *p, vec a) { _mm512_stream_ps(p, a); }
static inline vec v_load_first(const real *p, int64_t n, vec rest) {
    return _mm512_mask_loadu_ps(rest, (__mmask16)((1u << n) - 1), p);
}
static inline void v_store_first(real *p, vec a, int64_t n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a); }

static inline vec v_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline vec v_load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
typedef __m256i half_vec;
static inline half_vec v_to_f16(vec a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline half_vec v_to_bf16(vec a) {
    __m512i u = _mm512_castps_si512(a), high = _mm512_srli_epi32(u, 16);
    __m512i even = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}
static inline void v_store_half(uint16_t *p, half_vec h) { _mm256_storeu_si256((__m256i *)p, h); }
static inline void v_stream_half(uint16_t *p, half_vec h) { _mm256_stream_si256((__m256i *)p, h); }

static inline void v_accumulate(double *sums, double *lost, vec a) {
    (void)lost;
    __m256 low = _mm512_castps512_ps256(a), high = _mm512_extractf32x8_ps(a, 1);
    _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), _mm512_cvtps_pd(low)));
    _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), _mm512_cvtps_pd(high)));
}
/* Sums of lanes in float64, cleared. */
static inline void v_clear(double *sums, double *lost) {
    (void)lost;
    _mm512_storeu_pd(sums, _mm512_setzero_pd());
    _mm512_storeu_pd(sums + 8, _mm512_setzero_pd());
}
static inline vec v_from_doubles(const double *p) {
    __m256 low = _mm512_cvtpd_ps(_mm512_loadu_pd(p)), high = _mm512_cvtpd_ps(_mm512_loadu_pd(p + 8));
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
/* A sum of lanes in float64, and what rounding loses of it where the lanes are no narrower. */
typedef struct wide {
    __m512d low, high;
} wide;
static inline wide w_zero(void) { return (wide){_mm512_setzero_pd(), _mm512_setzero_pd()}; }
static inline wide w_add(wide w, vec a) {
    __m256 low = _mm512_castps512_ps256(a), high = _mm512_extractf32x8_ps(a, 1);
    return (wide){_mm512_add_pd(w.low, _mm512_cvtps_pd(low)), _mm512_add_pd(w.high, _mm512_cvtps_pd(high))};
}
static inline void w_store(wide w, double *sums, double *lost) {
    (void)lost;
    _mm512_storeu_pd(sums, w.low);
    _mm512_storeu_pd(sums + 8, w.high);
}
static inline double w_total(wide w) { return _mm512_reduce_add_pd(_mm512_add_pd(w.low, w.high)); }

/* A piece is what 16 bytes hold of a row; COLUMNS vectors of pieces, the row of each COLUMNS further on, transpose into
 * the vectors of as many classes, and back. */
enum { COLUMNS = 4 };
static inline vec v_load_pieces(const char *p, ptrdiff_t step) {
    __m256 a = _mm256_castps128_ps256(_mm_loadu_ps((const float *)p));
    __m256 b = _mm256_castps128_ps256(_mm_loadu_ps((const float *)(p + 8 * step)));
    a = _mm256_insertf128_ps(a, _mm_loadu_ps((const float *)(p + 4 * step)), 1);
    b = _mm256_insertf128_ps(b, _mm_loadu_ps((const float *)(p + 12 * step)), 1);
    return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1);
}
static inline void v_store_pieces(char *to, ptrdiff_t step, vec a) {
    _mm_storeu_ps((float *)to, _mm512_castps512_ps128(a));
    _mm_storeu_ps((float *)(to + 4 * step), _mm512_extractf32x4_ps(a, 1));
    _mm_storeu_ps((float *)(to + 8 * step), _mm512_extractf32x4_ps(a, 2));
    _mm_storeu_ps((float *)(to + 12 * step), _mm512_extractf32x4_ps(a, 3));
}
static inline void v_transpose(vec *a) {
    __m512 t0 = _mm512_unpacklo_ps(a[0], a[1]), t1 = _mm512_unpackhi_ps(a[0], a[1]);
    __m512 t2 = _mm512_unpacklo_ps(a[2], a[3]), t3 = _mm512_unpackhi_ps(a[2], a[3]);
    a[0] = _mm512_shuffle_ps(t0, t2, 0x44);
    a[1] = _mm512_shuffle_ps(t0, t2, 0xee);
    a[2] = _mm512_shuffle_ps(t1, t3, 0x44);
    a[3] = _mm512_shuffle_ps(t1, t3, 0xee);
}
/* Two vectors of pairs to the vectors of their first and second elements, and back. */
static inline void v_unzip(vec *a) {
    const ivec first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    vec even = _mm512_permutex2var_ps(a[0], first, a[1]);
    a[1] = _mm512_permutex2var_ps(a[0], i_or(first, i_set1(1)), a[1]);
    a[0] = even;
}
static inline void v_zip(vec *a) {
    const ivec low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    vec first = _mm512_permutex2var_ps(a[0], low, a[1]);
    a[1] = _mm512_permutex2var_ps(a[0], i_or(low, i_set1(8)), a[1]);
    a[0] = first;
}

static inline void v_fence(void) { _mm_sfence(); }

#include "../kernels/kernels.h"

const kernels fastce_avx512_f32 = KERNELS;

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

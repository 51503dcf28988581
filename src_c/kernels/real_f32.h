/* The arithmetic of float32 (and of float16 and bfloat16, which are loaded into it): its type and its constants.
 * Polynomials are interpolations at Chebyshev nodes, computed with 60 digits and rounded to the type. */
#include <stdint.h>

typedef float real;
#define REAL_HAS_HALVES
typedef uint32_t real_bits;

enum { MANTISSA_BITS = 23, EXPONENT_BIAS = 127 };
#define SMALLEST_NORMAL 0x1p-126f

/* exp: beyond EXP_LOWEST the result is exactly 0; EXP_HIGHEST keeps the exponent within its field. */
#define EXP_LOWEST -88.03f /* -127 ln 2: the exponent's field is 0, and so are the bits of a fraction */
#define EXP_HIGHEST 88.3f
#define LOG2_E 0x1.715476p+0f
#define LN2 0x1.62e430p-1f
#define LN2_HIGH 0x1.62e4p-1f /* 15 bits: x - n LN2_HIGH / EXP_STEPS is exact */
#define LN2_LOW 0x1.7f7d1cp-20f
#define LN2_EXCESS 0x1.05c610p-29f /* of LN2 over it */
#define ROUNDING 0x1.8p23f
/* (exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2: the result within 0.18 * 2^-24 */
static const real exp_coefficients[] = {0x1.000000p-1f, 0x1.5554dcp-3f, 0x1.555518p-5f, 0x1.120c62p-7f,
                                        0x1.6d11fep-10f};
/* The same for |r| <= ln(2)/16 and ln(2)/32, with nodes that make the result's error least: 0.44 and 0.03 * 2^-24. */
static const real exp_step_coefficients[][2] = {{0x1.00087ep-1f, 0x1.555c20p-3f}, {0x1.000220p-1f, 0x1.555708p-3f}};

#define SQRT_2 0x1.6a09e6p+0f
/* ((log(1 + s) - log(1 - s)) / s - 2) / s^2 in z = s^2 for |s| <= 0.172: the result within 0.05 * 2^-24 */
static const real log_coefficients[] = {0x1.55555cp-1f, 0x1.997b96p-2f, 0x1.2f013ep-2f};
/* (log(1 + f) - f + f^2 / 2) / f^3 for -1/4 <= f <= 1/2, and (log(1 + r) - r) / r^2 for |r| <= 0.0323: the result within
 * 0.14 and 0.02 * 2^-24 */
static const real log1p_coefficients[] = {0x1.555556p-2f,  -0x1.000026p-2f, 0x1.999a56p-3f,
                                          -0x1.5536aap-3f, 0x1.243704p-3f,  -0x1.02da64p-3f,
                                          0x1.de70d4p-4f,  -0x1.87a1eap-4f, 0x1.5f350ep-5f};
static const real log1p_step_coefficients[] = {-0x1.fffffep-2f, 0x1.555554p-2f, -0x1.002d8ep-2f, 0x1.99e7b2p-3f};
/* (log(1 + r) - r) / r^2 for -1/64 <= r <= 1/32, within 0.14 * 2^-24 */
static const real log_part_coefficients[] = {-0x1.000028p-1f, 0x1.555e0ap-2f, -0x1.f3bfb8p-3f};
/* (((1 + d) log(1 + d) + (1 - d) log(1 - d)) / d^2 - 1) / d^2 in z = d^2 for d <= 3/4: the sum within 0.1 * 2^-24 */
static const real divergence_coefficients[] = {0x1.555556p-3f, 0x1.111036p-4f,  0x1.24e202p-5f,
                                               0x1.610d26p-6f, 0x1.588148p-6f,  -0x1.17e996p-6f,
                                               0x1.5834cap-4f, -0x1.a8d4ecp-4f, 0x1.397184p-4f};

/* (tanh(u) / u - 1) / u^2 in z = u^2 for |u| <= 5/8: the result within 0.15 * 2^-23 */
static const real tanh_coefficients[] = {-0x1.555552p-2f, 0x1.110e1cp-3f, -0x1.b9258ap-5f, 0x1.58048ep-6f,
                                         -0x1.8f8de4p-8f};

/* A shifted sum up to this is far from overflow in every partial sum. */
#define LARGEST_SHIFTED_SUM 1e30
#define LARGEST_GAP 69.0f /* its logarithm, rounded down */
/* A few binades above the smallest normal number, and about one over LARGEST_SHIFTED_SUM. */
#define SMALLEST_FACTOR 0x1p-120
#define LOWERED 0x1p-100
/* A power of two: numbers beyond it, or below its inverse, are scaled by it before their exponent is looked at. */
#define FAR 0x1p64f
enum { FAR_EXPONENT = 64 };

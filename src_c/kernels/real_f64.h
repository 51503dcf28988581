/* The arithmetic of float64: its type and its constants, as real_f32.h describes them. */
#include <stdint.h>

typedef double real;
typedef uint64_t real_bits;

enum { MANTISSA_BITS = 52, EXPONENT_BIAS = 1023 };
#define SMALLEST_NORMAL 0x1p-1022

#define EXP_LOWEST -709.2
#define EXP_HIGHEST 709.3
#define LOG2_E 0x1.71547652b82fep+0
#define LN2 0x1.62e42fefa39efp-1
#define LN2_HIGH 0x1.62e42feep-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#define ROUNDING 0x1.8p52
/* within 0.16 * 2^-53 */
static const real exp_coefficients[] = {
    0x1.0000000000001p-1,  0x1.5555555555556p-3,  0x1.5555555553d05p-5,  0x1.1111111110996p-7,  0x1.6c16c178b0646p-10,
    0x1.a01a01a7da98dp-13, 0x1.a019b87f7a6e9p-16, 0x1.71de0d573888bp-19, 0x1.28922d8c8d4fbp-22, 0x1.af39789bfd689p-26,
};

#define SQRT_2 0x1.6a09e667f3bcdp+0
/* within 0.05 * 2^-53 */
static const real log_coefficients[] = {
    0x1.5555555555558p-1, 0x1.9999999994e76p-2, 0x1.2492492e6dfddp-2, 0x1.c71c6247410e3p-3,
    0x1.7462e17b4cdd0p-3, 0x1.39f8963ccbdc2p-3, 0x1.2b9f7fb3de73fp-3,
};
/* (((1 + d) log(1 + d) + (1 - d) log(1 - d)) / d^2 - 1) / d^2 in z = d^2 for d <= 3/4: the sum within 0.1 * 2^-53 */
static const real divergence_coefficients[] = {
    0x1.5555555555555p-3,  0x1.1111111110fc8p-4,  0x1.24924924bc126p-5,  0x1.6c16c14a752c4p-6,  0x1.f07c2d5403c85p-7,
    0x1.6814a66d5f4c5p-7,  0x1.113a146f27dd8p-7,  0x1.a75aea6530408p-8,  0x1.91a2c07c3b6dep-8,  -0x1.91c0af54fa7d6p-9,
    0x1.a9b47026ab59ep-5,  -0x1.ef009f916bf9ep-3, 0x1.f01d0d73132b5p-1,  -0x1.7d0ac2ef3d619p+1, 0x1.c97c2d998b62fp+2,
    -0x1.a66b26ab4a9a4p+3, 0x1.26ffa291d8a20p+4,  -0x1.2d72968033f36p+4, 0x1.aa66dc722a095p+3,  -0x1.760aa0b04e169p+2,
    0x1.3541ac63adb46p+0};

/* (tanh(u) / u - 1) / u^2 in z = u^2 for |u| <= 5/8: the result within 0.07 * 2^-53 */
static const real tanh_coefficients[] = {-0x1.5555555555555p-2,  0x1.11111111110a8p-3,   -0x1.ba1ba1ba0f126p-5,
                                         0x1.664f487e0a749p-6,   -0x1.226e3473dce5cp-7,  0x1.d6d39ae3905e2p-9,
                                         -0x1.7d9f6f23e8682p-10, 0x1.3526e9ed54da1p-11,  -0x1.f243823c8c981p-13,
                                         0x1.8445870f6fe41p-14,  -0x1.05bbdae896297p-15, 0x1.b33642a122cddp-18};

#define LARGEST_SHIFTED_SUM 1e290
#define LARGEST_GAP 667.0
/* A few binades above the smallest normal number, and about one over LARGEST_SHIFTED_SUM. */
#define SMALLEST_FACTOR 0x1p-1016
#define LOWERED 0x1p-960
/* A power of two: numbers beyond it, or below its inverse, are scaled by it before their exponent is looked at. */
#define FAR 0x1p512
enum { FAR_EXPONENT = 512 };

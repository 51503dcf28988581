/* One element of any dtype, byte order and alignment to a number and back. The kernels have vector forms of the common
 * cases; everything else comes through here, element by element. */
#ifndef FASTCE_CONVERT_H
#define FASTCE_CONVERT_H

#include "fastce.h"

#include <stdbool.h>
#include <string.h>

static inline int dtype_size(fastce_dtype dtype) {
    static const unsigned char size[FASTCE_DTYPE_COUNT] = {
        [FASTCE_F16] = 2, [FASTCE_BF16] = 2, [FASTCE_F32] = 4, [FASTCE_F64] = 8, [FASTCE_BOOL] = 1,
        [FASTCE_I8] = 1,  [FASTCE_I16] = 2,  [FASTCE_I32] = 4, [FASTCE_I64] = 8, [FASTCE_U8] = 1,
        [FASTCE_U16] = 2, [FASTCE_U32] = 4,  [FASTCE_U64] = 8,
    };
    return size[dtype];
}

static inline bool dtype_is_floating(fastce_dtype dtype) { return dtype <= FASTCE_F64; }

static inline uint64_t load_bits(const char *p, int size, bool swapped) {
    if (size == 1) return (unsigned char)*p;
    if (size == 2) {
        uint16_t u;
        memcpy(&u, p, 2);
        return swapped ? __builtin_bswap16(u) : u;
    }
    if (size == 4) {
        uint32_t u;
        memcpy(&u, p, 4);
        return swapped ? __builtin_bswap32(u) : u;
    }
    uint64_t u;
    memcpy(&u, p, 8);
    return swapped ? __builtin_bswap64(u) : u;
}

static inline void store_bits(char *p, uint64_t bits, int size, bool swapped) {
    if (size == 2) {
        uint16_t u = swapped ? __builtin_bswap16((uint16_t)bits) : (uint16_t)bits;
        memcpy(p, &u, 2);
    } else if (size == 4) {
        uint32_t u = swapped ? __builtin_bswap32((uint32_t)bits) : (uint32_t)bits;
        memcpy(p, &u, 4);
    } else {
        uint64_t u = swapped ? __builtin_bswap64(bits) : bits;
        memcpy(p, &u, 8);
    }
}

static inline float float_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t bits_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float float_from_bf16(uint16_t h) { return float_from_bits((uint32_t)h << 16); }

/* Rounds to nearest even; a NaN stays a NaN. */
static inline uint16_t bf16_from_float(float x) {
    uint32_t u = bits_from_float(x);
    if (x != x) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static inline float float_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) return float_from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    /* 2^112 moves the exponent's bias, and a subnormal half becomes the normal float it is. */
    return float_from_bits(sign | bits_from_float(float_from_bits(rest << 13) * 0x1p112f));
}

static inline uint16_t f16_from_float(float x) {
    uint32_t u = bits_from_float(x), sign = (u >> 16) & 0x8000, rest = u & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds past the largest half */
    if (rest < 0x38800000) {                                  /* subnormal half: let the adder round */
        uint32_t r = bits_from_float(float_from_bits(rest) + 0.5f) - bits_from_float(0.5f);
        return (uint16_t)(sign | r);
    }
    return (uint16_t)(sign | ((rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13));
}

static inline double load_number(const char *p, fastce_dtype dtype, bool swapped) {
    uint64_t bits = load_bits(p, dtype_size(dtype), swapped);
    double x;
    switch (dtype) {
    case FASTCE_F16:
        return float_from_f16((uint16_t)bits);
    case FASTCE_BF16:
        return float_from_bf16((uint16_t)bits);
    case FASTCE_F32:
        return float_from_bits((uint32_t)bits);
    case FASTCE_F64:
        memcpy(&x, &bits, 8);
        return x;
    case FASTCE_BOOL:
        return bits != 0;
    case FASTCE_I8:
        return (int8_t)bits;
    case FASTCE_I16:
        return (int16_t)bits;
    case FASTCE_I32:
        return (int32_t)bits;
    case FASTCE_I64:
        return (double)(int64_t)bits;
    default:
        return (double)bits;
    }
}

/* Unsigned values beyond int64 become INT64_MAX, which is no valid label either. */
static inline int64_t load_label(const char *p, fastce_dtype dtype, bool swapped) {
    uint64_t bits = load_bits(p, dtype_size(dtype), swapped);
    switch (dtype) {
    case FASTCE_I8:
        return (int8_t)bits;
    case FASTCE_I16:
        return (int16_t)bits;
    case FASTCE_I32:
        return (int32_t)bits;
    case FASTCE_I64:
        return (int64_t)bits;
    default:
        return bits > INT64_MAX ? INT64_MAX : (int64_t)bits;
    }
}

static inline void store_floating(char *p, double x, fastce_dtype dtype, bool swapped) {
    uint64_t bits;
    switch (dtype) {
    case FASTCE_F16:
        bits = f16_from_float((float)x);
        break;
    case FASTCE_BF16:
        bits = bf16_from_float((float)x);
        break;
    case FASTCE_F32:
        bits = bits_from_float((float)x);
        break;
    default:
        memcpy(&bits, &x, 8);
        break;
    }
    store_bits(p, bits, dtype_size(dtype), swapped);
}

#endif

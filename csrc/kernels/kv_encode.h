#ifndef CK_KV_ENCODE_H
#define CK_KV_ENCODE_H
/* A row of elements to its codes in a key-value cache: the arithmetic that ops/kv_store.h writes down. */
#include "kernels/kernel.h"
#include "ops/kv_store.h"
#include "simd/copy.h"
#include "simd/words.h"

#include <math.h>
#include <string.h>

/* The smallest normal number of the dtype. */
#define CK_TINY_f32 0x1p-126f
#define CK_TINY_bf16 0x1p-126f
#define CK_TINY_f16 0x1p-14f

/* A number as it is stored. */
static inline float
kv_rounded(elem *to, float x)
{
    v16_store(to, v16_splat(x), 1);
    return CK_FAULT(quant_scale_unrounded) ? x : v16_sum(v16_load(to, 1));
}

static inline float
kv_scale(elem *to, float scale)
{
    const float tiny = CK_WORD(CK_TINY, CK_DTYPE);
    return kv_rounded(to, scale < tiny && !CK_FAULT(quant_scale_underflow) ? tiny : scale);
}

/* n lanes, whole numbers from -128 to 255, as bytes. */
static inline void
kv_put_bytes(uint8_t *to, v16 x, size_t n)
{
    float lane[16];
    v16_store_f32(lane, x, 16);
    for (size_t i = 0; i < n; i++)
        to[i] = (uint8_t)(int)lane[i];
}

/* Sixteen lanes, whole numbers from 0 to 15, as nibbles. */
static inline void
kv_put_nibbles(uint8_t *to, v16 x)
{
    float lane[16];
    v16_store_f32(lane, x, 16);
    const size_t low = CK_FAULT(quant_nibbles), high = 1 - low;
    for (size_t i = 0; i < 8; i++)
        to[i] = (uint8_t)((int)lane[2 * i + low] | (int)lane[2 * i + high] << 4);
}

/* A group of n channels of bits codes. */
static inline void
kv_put_affine(uint8_t *codes, elem *scale, elem *bias, const elem *x, size_t n, int bits)
{
    const float levels = (bits == 8 ? 255.0f : 15.0f) - (float)CK_FAULT(quant_level_lost);
    v16 lo = v16_load(x, 16), hi = lo;
    for (size_t i = 16; i < n; i += 16) {
        lo = v16_min(v16_load(x + i, 16), lo);
        hi = v16_max(v16_load(x + i, 16), hi);
    }
    const float max = v16_peak(hi), min = -v16_peak(v16_neg(lo)) + 0.0f;
    const float step = kv_scale(scale, max == min ? 1.0f : (max - min) / levels);
    const float from = kv_rounded(bias, min);
    const v16 by = v16_splat(step), zero = v16_splat(from), half = v16_splat(CK_FAULT(quant_truncated) ? 0.0f : 0.5f), all = v16_splat(levels);
    for (size_t i = 0; i < n; i += 16) {
        const v16 code = v16_add(v16_div(v16_sub(v16_load(x + i, 16), zero), by), half);
        const v16 within = v16_min(v16_max(code, v16_zero()), all);
        if (bits == 8)
            kv_put_bytes(codes + i, within, 16); /* drops what is behind the point */
        else
            kv_put_nibbles(codes + i / 2, within);
    }
}

static inline float
kv_peak(const elem *x, size_t n)
{
    v16 peak = v16_zero();
    for (size_t i = 0; i < n; i += 16)
        peak = v16_max(v16_abs(v16_load(x + i, n - i)), peak);
    return v16_peak(peak);
}

/* To the nearest whole number, to even, for |x| < 2^22. */
static inline v16
kv_nearest(v16 x)
{
    const v16 big = v16_splat(0x1.8p23f);
    return v16_sub(v16_add(x, big), big);
}

static inline void
kv_put_symmetric(uint8_t *codes, elem *scale, const elem *x, size_t n)
{
    const float peak = kv_peak(x, n);
    const v16 by = v16_splat(kv_scale(scale, (peak > 1e-8f ? peak : 1e-8f) / 127.0f)), most = v16_splat(127.0f);
    for (size_t i = 0; i < n; i += 16) {
        const v16 code = kv_nearest(v16_div(v16_load(x + i, n - i), by));
        kv_put_bytes(codes + i, v16_max(v16_min(code, most), v16_neg(most)), n - i < 16 ? n - i : 16);
    }
}

/* A float8 that x, within its range, rounds to: `kept` bits of fraction, exponents from 1 - `bias` on. */
static inline uint8_t
kv_float8(float x, unsigned kept, int bias)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 24 & 0x80u, drop = 23 - kept;
    bits &= 0x7fffffffu;
    const uint32_t low = (uint32_t)(128 - bias) << 23;         /* the smallest normal number */
    const uint32_t even = CK_FAULT(quant_float8_half_up) ? 1 : bits >> drop & 1u, up = bits + even + (1u << (drop - 1)) - 1;
    float size;
    memcpy(&size, &bits, sizeof size);
    const float big = 0x1.8p23f, unit = kept == 3 ? 0x1p9f : 0x1p16f; /* below it, whole numbers of the smallest step */
    const uint32_t tiny = bits < low ? (uint32_t)(size * unit + big - big) : 0;
    return (uint8_t)(sign | (bits < low ? tiny : (up - ((uint32_t)(127 - bias) << 23)) >> drop));
}

static inline void
kv_put_float8(uint8_t *codes, elem *scale, const elem *x, size_t n, unsigned kept)
{
    const float largest = kept == 3 ? 448.0f : 57344.0f, peak = kv_peak(x, n);
    const v16 by = v16_splat(kv_scale(scale, peak > 0.0f ? peak / largest : 1.0f)), most = v16_splat(largest);
    for (size_t i = 0; i < n; i += 16) {
        float lane[16];
        const v16 y = v16_div(v16_load(x + i, 16), by);
        v16_store_f32(lane, v16_max(v16_min(y, most), v16_neg(most)), 16);
        for (size_t j = 0; j < 16; j++)
            codes[i + j] = kv_float8(lane[j], kept, kept == 3 ? 7 : 15);
    }
}

/* Row x of D channels becomes row `row` of a store. */
static inline void
kv_put(const ck_kv_form *form, const ck_kv_part *to, size_t row, const elem *x, bool stream)
{
    const size_t D = form->D, group = form->group;
    uint8_t *codes = (uint8_t *)to->codes + row * form->W;
    elem *scales = to->scales != NULL ? (elem *)to->scales + row * form->V : NULL;
    elem *biases = to->biases != NULL ? (elem *)to->biases + row * form->V : NULL;
    switch (form->format) {
    case CK_KV_INT8:
        for (size_t i = 0; i < D; i += group)
            kv_put_affine(codes + i, scales + i / group, biases + i / group, x + i, group, 8);
        break;
    case CK_KV_INT4:
        for (size_t i = 0; i < D; i += group)
            kv_put_affine(codes + i / 2, scales + i / group, biases + i / group, x + i, group, 4);
        break;
    case CK_KV_INT8_SYM:
        kv_put_symmetric(codes, scales, x, D);
        break;
    case CK_KV_E4M3:
    case CK_KV_E5M2:
        for (size_t i = 0; i < D; i += group)
            kv_put_float8(codes + i, scales + i / group, x + i, group, form->format == CK_KV_E4M3 ? 3 : 2);
        break;
    default:
        if (stream)
            ck_copy((char *)codes, (const char *)x, form->W, true);
        else
            memcpy(codes, x, form->W + CK_FAULT(kv_neighbour));
    }
}
#endif

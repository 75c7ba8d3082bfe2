#ifndef CK_SIMD_CODES_H
#define CK_SIMD_CODES_H
/*
 * Sixteen stored codes as floats, exactly; the same numbers on every instruction set.
 *
 *     v16_load_u8(p), v16_load_i8(p)        16 bytes, unsigned or signed
 *     v16_load_e4m3(p), v16_load_e5m2(p)    16 bytes, float8 e4m3fn (no inf; 0x7f and 0xff are NaN) and e5m2
 *     v16_load_all(p)                       sixteen times the element at p
 *     v16_levels(scale, bias)               a v16_level: what v16_load_u4 gives for each of the 16 codes
 *     v16_load_u4(level, p)                 8 bytes, two codes each, the low one first: code * scale + bias, both rounded
 */
#include "simd/words.h"

#include <string.h>

static inline v16 v16_load_all_f32(const float *p) { return v16_splat(*p); }
#if (defined(__AVX512F__) || defined(__AVX2__)) && !defined(CK_PORTABLE)
static inline v16 v16_load_all_bf16(const ck_bf16 *p) { return ck_wide_bf16(_mm256_set1_epi16((int16_t)p->bits)); }
static inline v16 v16_load_all_f16(const ck_f16 *p) { return ck_wide_f16(_mm256_set1_epi16((int16_t)p->bits)); }
#else
static inline v16 v16_load_all_bf16(const ck_bf16 *p) { return v16_splat(v16_sum(v16_load_bf16(p, 1))); }
static inline v16 v16_load_all_f16(const ck_f16 *p) { return v16_splat(v16_sum(v16_load_f16(p, 1))); }
#endif
#define v16_load_all CK_WORD(v16_load_all, CK_DTYPE)

static inline v16
v16_affine(v16 code, v16 scale, v16 bias)
{
    return v16_add(v16_mul(code, scale), bias);
}

#if defined(__AVX512F__) && !defined(CK_PORTABLE)

static inline __m128i ck_bytes(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }
static inline v16 v16_load_u8(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(ck_bytes(p))); }
static inline v16 v16_load_i8(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(ck_bytes(p))); }

static inline v16
v16_load_e4m3(const uint8_t *p)
{
    const __m512i x = _mm512_cvtepi8_epi32(ck_bytes(p)), size = _mm512_and_si512(_mm512_slli_epi32(x, 20), _mm512_set1_epi32(0x07f00000));
    const __m512i bits = _mm512_or_si512(size, _mm512_and_si512(x, _mm512_set1_epi32(INT32_MIN)));
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(size, _mm512_set1_epi32(0x07f00000));
    return _mm512_mask_blend_ps(nan, _mm512_mul_ps(_mm512_castsi512_ps(bits), v16_splat(0x1p120f)), v16_splat(NAN));
}

static inline v16 v16_load_e5m2(const uint8_t *p) { return ck_wide_f16(_mm256_slli_epi16(_mm256_cvtepu8_epi16(ck_bytes(p)), 8)); }

typedef v16 v16_level; /* the sixteen values */

static inline v16_level
v16_levels(v16 scale, v16 bias)
{
    const v16 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return v16_affine(codes, scale, bias);
}

static inline v16
v16_load_u4(v16_level level, const uint8_t *p)
{
    const __m512i shift = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    int32_t lo, hi;
    memcpy(&lo, p, 4);
    memcpy(&hi, p + 4, 4);
    const __m512i both = _mm512_mask_set1_epi32(_mm512_set1_epi32(lo), 0xff00, hi);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(both, shift), level); /* of an index, the low four bits count */
}

#else

#if defined(__AVX2__) && !defined(CK_PORTABLE)

static inline __m128i ck_eight(const uint8_t *p) { return _mm_loadl_epi64((const __m128i *)p); }
static inline __m256 ck_unsigned(const uint8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(ck_eight(p))); }
static inline __m256 ck_signed(const uint8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(ck_eight(p))); }
static inline v16 v16_load_u8(const uint8_t *p) { return (v16){ck_unsigned(p), ck_unsigned(p + 8)}; }
static inline v16 v16_load_i8(const uint8_t *p) { return (v16){ck_signed(p), ck_signed(p + 8)}; }

static inline __m256
ck_e4m3(const uint8_t *p)
{
    const __m256i x = _mm256_cvtepi8_epi32(ck_eight(p)), size = _mm256_and_si256(_mm256_slli_epi32(x, 20), _mm256_set1_epi32(0x07f00000));
    const __m256i bits = _mm256_or_si256(size, _mm256_and_si256(x, _mm256_set1_epi32(INT32_MIN)));
    const __m256i nan = _mm256_cmpeq_epi32(size, _mm256_set1_epi32(0x07f00000));
    const __m256 y = _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0x1p120f));
    return _mm256_blendv_ps(y, _mm256_set1_ps(NAN), _mm256_castsi256_ps(nan));
}
static inline v16 v16_load_e4m3(const uint8_t *p) { return (v16){ck_e4m3(p), ck_e4m3(p + 8)}; }
static inline v16
v16_load_e5m2(const uint8_t *p)
{
    return ck_wide_f16(_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p)), 8));
}

static inline v16
ck_codes_u4(const uint8_t *p)
{
    const __m256i shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28), low = _mm256_set1_epi32(15);
    int32_t word[2];
    memcpy(word, p, 8);
    return (v16){_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(word[0]), shift), low)),
                 _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(word[1]), shift), low))};
}

#else

static inline v16
v16_load_u8(const uint8_t *p)
{
    float x[16];
    for (size_t i = 0; i < 16; i++)
        x[i] = (float)p[i];
    return v16_load_f32(x, 16);
}

static inline v16
v16_load_i8(const uint8_t *p)
{
    float x[16];
    for (size_t i = 0; i < 16; i++)
        x[i] = (float)(int8_t)p[i];
    return v16_load_f32(x, 16);
}

/* A float8 is sign, exponent, fraction: in their places of a float, they are it by a power of two. */
static inline v16
ck_float8(const uint8_t *p, unsigned places, uint32_t inf, uint32_t nan, float power)
{
    float x[16];
    for (size_t i = 0; i < 16; i++) {
        const uint32_t size = p[i] & 0x7fu, sign = (uint32_t)(p[i] & 0x80u) << 24;
        const uint32_t bits = size << places, full = size >= nan ? 0x7fc00000u : 0x7f800000u;
        float y;
        memcpy(&y, size >= inf ? &full : &bits, sizeof y);
        y *= power;
        x[i] = sign != 0 ? -y : y;
    }
    return v16_load_f32(x, 16);
}
static inline v16 v16_load_e4m3(const uint8_t *p) { return ck_float8(p, 20, 0x7f, 0x7f, 0x1p120f); }
static inline v16 v16_load_e5m2(const uint8_t *p) { return ck_float8(p, 21, 0x7c, 0x7d, 0x1p112f); }

static inline v16
ck_codes_u4(const uint8_t *p)
{
    float x[16];
    for (size_t i = 0; i < 16; i++)
        x[i] = (float)(p[i / 2] >> (i % 2 * 4) & 15);
    return v16_load_f32(x, 16);
}

#endif

typedef struct { v16 scale, bias; } v16_level;

static inline v16_level v16_levels(v16 scale, v16 bias) { return (v16_level){scale, bias}; }
static inline v16 v16_load_u4(v16_level level, const uint8_t *p) { return v16_affine(ck_codes_u4(p), level.scale, level.bias); }

#endif
#endif

#ifndef CK_SSE2_H
#define CK_SSE2_H
#include <emmintrin.h>
#include <string.h>

typedef struct { __m128 x[4]; } v16; /* lanes 0..3, 4..7, 8..11, 12..15 */
typedef struct { __m128 x[4]; } v16_mask;

#define CK_FOUR1(f, a) {{f((a).x[0]), f((a).x[1]), f((a).x[2]), f((a).x[3])}}
#define CK_FOUR2(f, a, b) {{f((a).x[0], (b).x[0]), f((a).x[1], (b).x[1]), f((a).x[2], (b).x[2]), f((a).x[3], (b).x[3])}}

static inline v16
v16_splat(float f)
{
    const __m128 x = _mm_set1_ps(f);
    return (v16){{x, x, x, x}};
}
static inline v16 v16_zero(void) { return v16_splat(0.0f); }
static inline v16 v16_add(v16 x, v16 y) { return (v16)CK_FOUR2(_mm_add_ps, x, y); }
static inline v16 v16_sub(v16 x, v16 y) { return (v16)CK_FOUR2(_mm_sub_ps, x, y); }
static inline v16 v16_mul(v16 x, v16 y) { return (v16)CK_FOUR2(_mm_mul_ps, x, y); }
static inline v16 v16_div(v16 x, v16 y) { return (v16)CK_FOUR2(_mm_div_ps, x, y); }
static inline v16 v16_sqrt(v16 x) { return (v16)CK_FOUR1(_mm_sqrt_ps, x); }
static inline v16 v16_max(v16 x, v16 y) { return (v16)CK_FOUR2(_mm_max_ps, x, y); }
static inline v16 v16_min(v16 x, v16 y) { return (v16)CK_FOUR2(_mm_min_ps, x, y); }
static inline v16 v16_fma(v16 x, v16 y, v16 z) { return v16_add(v16_mul(x, y), z); }
static inline v16 ck_signs(v16 x) { return (v16)CK_FOUR2(_mm_and_ps, x, v16_splat(-0.0f)); }
static inline v16 v16_neg(v16 x) { return (v16)CK_FOUR2(_mm_xor_ps, x, v16_splat(-0.0f)); }
static inline v16 v16_abs(v16 x) { return (v16)CK_FOUR2(_mm_andnot_ps, v16_splat(-0.0f), x); }
static inline v16 v16_copysign(v16 x, v16 sign) { return (v16)CK_FOUR2(_mm_or_ps, v16_abs(x), ck_signs(sign)); }

static inline v16_mask v16_lt(v16 x, v16 y) { return (v16_mask)CK_FOUR2(_mm_cmplt_ps, x, y); }
static inline v16_mask v16_le(v16 x, v16 y) { return (v16_mask)CK_FOUR2(_mm_cmple_ps, x, y); }
static inline v16_mask v16_eq(v16 x, v16 y) { return (v16_mask)CK_FOUR2(_mm_cmpeq_ps, x, y); }
static inline v16_mask v16_is_nan(v16 x) { return (v16_mask)CK_FOUR2(_mm_cmpunord_ps, x, x); }

static inline v16
v16_select(v16_mask m, v16 x, v16 y)
{
    const v16 yes = CK_FOUR2(_mm_and_ps, m, x), no = CK_FOUR2(_mm_andnot_ps, m, y);
    return (v16)CK_FOUR2(_mm_or_ps, yes, no);
}

static inline v16_mask
v16_first(size_t n)
{
    static const int32_t on_off[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    const float *p = (const float *)(on_off + (n < 16 ? 16 - n : 0));
    return (v16_mask){{_mm_loadu_ps(p), _mm_loadu_ps(p + 4), _mm_loadu_ps(p + 8), _mm_loadu_ps(p + 12)}};
}

static inline __m128
ck_pow2(__m128 shifted)
{
    const __m128i bits = _mm_add_epi32(_mm_castps_si128(shifted), _mm_set1_epi32(127 - 0x4B400000));
    return _mm_castsi128_ps(_mm_slli_epi32(bits, 23));
}
static inline v16 v16_pow2_shifted(v16 s) { return (v16)CK_FOUR1(ck_pow2, s); }

static inline v16
v16_split(v16 x, v16 *exponent)
{
    for (int i = 0; i < 4; i++) {
        const __m128i bits = _mm_castps_si128(x.x[i]);
        const __m128i e = _mm_srai_epi32(_mm_sub_epi32(bits, _mm_set1_epi32(CK_SQRT_HALF)), 23);
        exponent->x[i] = _mm_cvtepi32_ps(e);
        x.x[i] = _mm_castsi128_ps(_mm_sub_epi32(bits, _mm_slli_epi32(e, 23)));
    }
    return x;
}

#define CK_TAKE(a, b, i, how) _mm_shuffle_ps((a).x[i], (b).x[(i) + 1], how)
static inline v16
v16_evens(v16 x, v16 y)
{
    return (v16){{CK_TAKE(x, x, 0, 0x88), CK_TAKE(x, x, 2, 0x88), CK_TAKE(y, y, 0, 0x88), CK_TAKE(y, y, 2, 0x88)}};
}
static inline v16
v16_odds(v16 x, v16 y)
{
    return (v16){{CK_TAKE(x, x, 0, 0xdd), CK_TAKE(x, x, 2, 0xdd), CK_TAKE(y, y, 0, 0xdd), CK_TAKE(y, y, 2, 0xdd)}};
}
static inline v16
ck_zip(__m128 x0, __m128 y0, __m128 x1, __m128 y1)
{
    return (v16){{_mm_unpacklo_ps(x0, y0), _mm_unpackhi_ps(x0, y0), _mm_unpacklo_ps(x1, y1), _mm_unpackhi_ps(x1, y1)}};
}
static inline v16 v16_zip_lo(v16 x, v16 y) { return ck_zip(x.x[0], y.x[0], x.x[1], y.x[1]); }
static inline v16 v16_zip_hi(v16 x, v16 y) { return ck_zip(x.x[2], y.x[2], x.x[3], y.x[3]); }

static inline float
v16_sum(v16 x)
{
    __m128 four = _mm_add_ps(_mm_add_ps(x.x[0], x.x[2]), _mm_add_ps(x.x[1], x.x[3]));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}

static inline float
v16_peak(v16 x)
{
    __m128 four = _mm_max_ps(_mm_max_ps(x.x[0], x.x[2]), _mm_max_ps(x.x[1], x.x[3]));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

static inline v16
v16_load_or_f32(const float *p, size_t n, float f)
{
    if (n < 16) {
        v16 x = v16_splat(f);
        memcpy(&x, p, n * sizeof *p);
        return x;
    }
    return (v16){{_mm_loadu_ps(p), _mm_loadu_ps(p + 4), _mm_loadu_ps(p + 8), _mm_loadu_ps(p + 12)}};
}
static inline v16 v16_load_f32(const float *p, size_t n) { return v16_load_or_f32(p, n, 0.0f); }

static inline void
v16_store_f32(float *p, v16 x, size_t n)
{
    if (n < 16) {
        float tail[16]; /* the address of x itself would keep it in memory, for clang */
        for (int i = 0; i < 4; i++)
            _mm_storeu_ps(tail + 4 * i, x.x[i]);
        memcpy(p, tail, n * sizeof *p);
    }
    else
        for (int i = 0; i < 4; i++)
            _mm_storeu_ps(p + 4 * i, x.x[i]);
}

static inline void
v16_stream_f32(float *p, v16 x, size_t n)
{
    if (n < 16 || (uintptr_t)p % 64 != 0)
        v16_store_f32(p, x, n);
    else
        for (int i = 0; i < 4; i++)
            _mm_stream_ps(p + 4 * i, x.x[i]);
}

/* Sixteen elements of 16 bits, as 32-bit lanes with zeros above, and back. */
static inline void
ck_halves(const void *p, __m128i *x)
{
    for (int i = 0; i < 2; i++) {
        const __m128i eight = _mm_loadu_si128((const __m128i *)p + i);
        x[2 * i] = _mm_unpacklo_epi16(eight, _mm_setzero_si128());
        x[2 * i + 1] = _mm_unpackhi_epi16(eight, _mm_setzero_si128());
    }
}

static inline void
ck_put_halves(void *p, const __m128i *x)
{
    __m128i wide[4]; /* the pack saturates signed numbers: 0x8000 and up must look negative */
    for (int i = 0; i < 4; i++)
        wide[i] = _mm_srai_epi32(_mm_slli_epi32(x[i], 16), 16);
    for (int i = 0; i < 2; i++)
        _mm_storeu_si128((__m128i *)p + i, _mm_packs_epi32(wide[2 * i], wide[2 * i + 1]));
}

static inline __m128i
ck_choose(__m128i mask, __m128i x, __m128i y)
{
    return _mm_or_si128(_mm_and_si128(mask, x), _mm_andnot_si128(mask, y));
}

static inline __m128 ck_wide_bf16(__m128i x) { return _mm_castsi128_ps(_mm_slli_epi32(x, 16)); }

/* Rounds to nearest even; NaN stays a (quiet) NaN. */
static inline __m128i
ck_short_bf16(__m128 x)
{
    const __m128i bits = _mm_castps_si128(x), odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
    const __m128i rounded = _mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0x7fff)));
    const __m128i quiet = _mm_or_si128(bits, _mm_set1_epi32(0x400000));
    return _mm_srli_epi32(ck_choose(_mm_castps_si128(_mm_cmpunord_ps(x, x)), quiet, rounded), 16);
}

/*
 * float16 without its instructions: the bits moved to a float's place are the number times 2^-112, subnormal ones too,
 * so one exact multiplication finishes it; infinity and NaN, which come out at 2^16 and up, get their exponent by hand.
 */
static inline __m128
ck_wide_f16(__m128i x)
{
    const __m128i bits = _mm_slli_epi32(_mm_and_si128(x, _mm_set1_epi32(0x7fff)), 13);
    const __m128i sign = _mm_slli_epi32(_mm_and_si128(x, _mm_set1_epi32(0x8000)), 16);
    const __m128 number = _mm_mul_ps(_mm_castsi128_ps(bits), _mm_set1_ps(0x1p112f));
    const __m128i strange = _mm_and_si128(_mm_castps_si128(_mm_cmpge_ps(number, _mm_set1_ps(65536.0f))), _mm_set1_epi32(0x7f800000));
    return _mm_castsi128_ps(_mm_or_si128(_mm_or_si128(_mm_castps_si128(number), strange), sign));
}

/* Rounds to nearest even: in integers; but subnormal results by an addition that puts their last place at the sum's. */
static inline __m128i
ck_short_f16(__m128 x)
{
    const __m128i all = _mm_castps_si128(x), bits = _mm_and_si128(all, _mm_set1_epi32(0x7fffffff));
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 13), _mm_set1_epi32(1));
    const __m128i normal = _mm_srli_epi32(_mm_add_epi32(_mm_add_epi32(bits, odd), _mm_set1_epi32(0xfff - (112 << 23))), 13);
    const __m128i tiny = _mm_sub_epi32(_mm_castps_si128(_mm_add_ps(_mm_castsi128_ps(bits), _mm_set1_ps(0.5f))), _mm_set1_epi32(126 << 23));
    const __m128i quiet = _mm_or_si128(_mm_and_si128(_mm_srli_epi32(bits, 13), _mm_set1_epi32(0x3ff)), _mm_set1_epi32(0x7e00));

    __m128i y = ck_choose(_mm_cmplt_epi32(bits, _mm_set1_epi32(113 << 23)), tiny, normal);
    y = ck_choose(_mm_cmpgt_epi32(bits, _mm_set1_epi32(0x477fefff)), _mm_set1_epi32(0x7c00), y); /* from 65520: infinity */
    y = ck_choose(_mm_castps_si128(_mm_cmpunord_ps(x, x)), quiet, y);
    return _mm_or_si128(y, _mm_srli_epi32(_mm_andnot_si128(_mm_set1_epi32(0x7fffffff), all), 16));
}

#define CK_SIXTEEN_BITS(dtype, type)                                                             \
    static inline v16 v16_load_or_##dtype(const type *p, size_t n, float f)                      \
    {                                                                                            \
        __m128i halves[4];                                                                       \
        type few[16] = {{0}};                                                                    \
        v16 x;                                                                                   \
        if (n < 16)                                                                              \
            p = memcpy(few, p, n * sizeof *p);                                                   \
        ck_halves(p, halves);                                                                    \
        for (int i = 0; i < 4; i++)                                                              \
            x.x[i] = ck_wide_##dtype(halves[i]);                                                 \
        return n >= 16 || f == 0 ? x : v16_select(v16_first(n), x, v16_splat(f));                \
    }                                                                                            \
    static inline v16 v16_load_##dtype(const type *p, size_t n) { return v16_load_or_##dtype(p, n, 0.0f); } \
    static inline void v16_store_##dtype(type *p, v16 x, size_t n)                               \
    {                                                                                            \
        __m128i halves[4];                                                                       \
        type few[16];                                                                            \
        for (int i = 0; i < 4; i++)                                                              \
            halves[i] = ck_short_##dtype(x.x[i]);                                                \
        ck_put_halves(n >= 16 ? p : few, halves);                                                \
        if (n < 16)                                                                              \
            memcpy(p, few, n * sizeof *p);                                                       \
    }                                                                                            \
    static inline void v16_stream_##dtype(type *p, v16 x, size_t n) { v16_store_##dtype(p, x, n); }
CK_SIXTEEN_BITS(bf16, ck_bf16)
CK_SIXTEEN_BITS(f16, ck_f16)

static inline void ck_stream_end(void) { _mm_sfence(); }
#endif

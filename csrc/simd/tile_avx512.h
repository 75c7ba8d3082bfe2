#ifndef CK_TILE_AVX512_H
#define CK_TILE_AVX512_H

enum { CK_TILE_ROWS = 14, CK_TILE_PANELS = 2 }; /* 28 sums, 2 of b, 1 of a: 31 of 32 registers */
#define CK_TILES(_) _(1) _(2) _(3) _(4) _(5) _(6) _(7) _(8) _(9) _(10) _(11) _(12) _(13) _(14)

/* r[j] lane i = from[i][j], j < n; 64 shuffles */
static inline __attribute__((always_inline)) void
ck_turned(__m512 *r, const float *const *from, size_t n)
{
    __m512 four[4][4]; /* four[q][c], lane quad L: column 4L+c of rows 4q..4q+3 */

    for (int q = 0; q < 4; q++) {
        const __m512 a = v16_load_f32(from[4 * q], n), b = v16_load_f32(from[4 * q + 1], n);
        const __m512 c = v16_load_f32(from[4 * q + 2], n), d = v16_load_f32(from[4 * q + 3], n);
        const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), AB = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
        const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d)), CD = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
        four[q][0] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        four[q][1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        four[q][2] = _mm512_castpd_ps(_mm512_unpacklo_pd(AB, CD));
        four[q][3] = _mm512_castpd_ps(_mm512_unpackhi_pd(AB, CD));
    }
    for (int c = 0; c < 4; c++) {
        const __m512 even01 = _mm512_shuffle_f32x4(four[0][c], four[1][c], 0x88);
        const __m512 even23 = _mm512_shuffle_f32x4(four[2][c], four[3][c], 0x88);
        const __m512 odd01 = _mm512_shuffle_f32x4(four[0][c], four[1][c], 0xdd);
        const __m512 odd23 = _mm512_shuffle_f32x4(four[2][c], four[3][c], 0xdd);
        r[c] = _mm512_shuffle_f32x4(even01, even23, 0x88);
        r[8 + c] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
        r[4 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
        r[12 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
    }
}

static inline __attribute__((always_inline)) void
v16_transpose(float *to, size_t step, const float *const *from, size_t n)
{
    __m512 r[16];
    ck_turned(r, from, n);
    if (n >= 16)
        for (size_t j = 0; j < 16; j++)
            _mm512_storeu_ps(to + j * step, r[j]);
    else
        for (size_t j = 0; j < n; j++)
            _mm512_storeu_ps(to + j * step, r[j]);
}

static inline __attribute__((always_inline)) void
v16_fma_turned(v16 *s, size_t rows, const float *a, size_t step, const float *const *from)
{
    __m512 r[16];
    ck_turned(r, from, 16);
    for (size_t j = 0; j < 16; j++)
        for (size_t i = 0; i < rows; i++)
            s[i] = v16_fma(v16_splat(a[i * step + j]), r[j], s[i]);
}
#endif

#ifndef CK_TILE_AVX512_H
#define CK_TILE_AVX512_H

enum { CK_TILE_ROWS = 14, CK_TILE_PANELS = 2 }; /* 28 sums, 2 of b, 1 of a: 31 of 32 registers */
#define CK_TILES(_) _(1) _(2) _(3) _(4) _(5) _(6) _(7) _(8) _(9) _(10) _(11) _(12) _(13) _(14)

/* In each quad of lanes, four columns of the four rows a, b, c, d turned. */
static inline __attribute__((always_inline)) void
ck_turned_quads(__m512 *r, __m512 a, __m512 b, __m512 c, __m512 d)
{
    const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), AB = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d)), CD = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    r[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
    r[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    r[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(AB, CD));
    r[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(AB, CD));
}

/* Eight floats of row i, and beside them eight of row i + 4. */
static inline __attribute__((always_inline)) __m512
ck_two_rows(const float *const *from, size_t i, size_t at)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(from[i] + at)), _mm256_loadu_ps(from[i + 4] + at), 1);
}

/* r[j] lane i = from[i][j], j < 16: 64 shuffles, 16 of them loads. */
static inline __attribute__((always_inline)) void
ck_turned(__m512 *r, const float *const *from)
{
    for (size_t at = 0; at < 16; at += 8) {
        __m512 x[4], y[4]; /* quad q: four columns of row 4q + i */
        for (size_t i = 0; i < 4; i++) {
            const __m512 upper = ck_two_rows(from, i, at), lower = ck_two_rows(from, i + 8, at);
            x[i] = _mm512_shuffle_f32x4(upper, lower, 0x88);
            y[i] = _mm512_shuffle_f32x4(upper, lower, 0xdd);
        }
        ck_turned_quads(r + at, x[0], x[1], x[2], x[3]);
        ck_turned_quads(r + at + 4, y[0], y[1], y[2], y[3]);
    }
}

/* The same for j < n, n < 16; the rest is 0. */
static inline __attribute__((always_inline)) void
ck_turned_end(__m512 *r, const float *const *from, size_t n)
{
    __m512 four[4][4]; /* four[q][c], lane quad L: column 4L+c of rows 4q..4q+3 */

    for (int q = 0; q < 4; q++)
        ck_turned_quads(four[q], v16_load_f32(from[4 * q], n), v16_load_f32(from[4 * q + 1], n),
                        v16_load_f32(from[4 * q + 2], n), v16_load_f32(from[4 * q + 3], n));
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
    if (n >= 16) {
        ck_turned(r, from);
        for (size_t j = 0; j < 16; j++)
            _mm512_storeu_ps(to + j * step, r[j]);
        return;
    }
    ck_turned_end(r, from, n);
    for (size_t j = 0; j < n; j++)
        _mm512_storeu_ps(to + j * step, r[j]);
}

static inline __attribute__((always_inline)) void
v16_fma_turned(v16 *s, size_t rows, const float *a, size_t step, const float *const *from)
{
    __m512 r[16];
    ck_turned(r, from);
    for (size_t j = 0; j < 16; j++)
        for (size_t i = 0; i < rows; i++)
            s[i] = v16_fma(v16_splat(a[i * step + j]), r[j], s[i]);
}

static inline __attribute__((always_inline)) v16
v16_fma_each(v16 s, const float *x, const float *const *from)
{
    __m512 r[16];
    ck_turned(r, from);
    for (size_t j = 0; j < 16; j++)
        s = v16_fma(v16_load_f32(x + 16 * j, 16), r[j], s);
    return s;
}
#endif

#ifndef CK_TILE_AVX2_H
#define CK_TILE_AVX2_H

enum { CK_TILE_ROWS = 6, CK_TILE_PANELS = 1 }; /* 12 sums, 2 of b, 1 of a: 15 of 16 registers */
#define CK_TILES(_) _(1) _(2) _(3) _(4) _(5) _(6)

/* r[j] lane i = from[i][at + j], i < 8, j < n <= 8 */
static inline __attribute__((always_inline)) void
ck_turned8(__m256 *r, const float *const *from, size_t at, size_t n)
{
    const __m256i mask = ck_first(n);
    __m256 two[8], four[8];

    for (int i = 0; i < 8; i++)
        r[i] = n >= 8 ? _mm256_loadu_ps(from[i] + at) : _mm256_maskload_ps(from[i] + at, mask);
    for (int i = 0; i < 8; i += 2) {
        two[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        two[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        four[i] = _mm256_shuffle_ps(two[i], two[i + 2], 0x44);
        four[i + 1] = _mm256_shuffle_ps(two[i], two[i + 2], 0xee);
        four[i + 2] = _mm256_shuffle_ps(two[i + 1], two[i + 3], 0x44);
        four[i + 3] = _mm256_shuffle_ps(two[i + 1], two[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
    }
}

/* to[j*step + i] = from[i][at + j], i < 8, j < n <= 8 */
static inline __attribute__((always_inline)) void
ck_transpose8(float *to, size_t step, const float *const *from, size_t at, size_t n)
{
    __m256 r[8];
    ck_turned8(r, from, at, n);
    if (n >= 8)
        for (size_t j = 0; j < 8; j++)
            _mm256_storeu_ps(to + j * step, r[j]);
    else {
        float all[8][8]; /* r[j] by a variable j would be memory anyway */
        for (size_t j = 0; j < 8; j++)
            _mm256_storeu_ps(all[j], r[j]);
        for (size_t j = 0; j < n; j++)
            _mm256_storeu_ps(to + j * step, _mm256_loadu_ps(all[j]));
    }
}

static inline __attribute__((always_inline)) void
v16_transpose(float *to, size_t step, const float *const *from, size_t n)
{
    for (size_t half = 0; half < 16; half += 8) { /* rows from */
        ck_transpose8(to + half, step, from + half, 0, n);
        if (n > 8)
            ck_transpose8(to + 8 * step + half, step, from + half, 8, n - 8);
    }
}

static inline __attribute__((always_inline)) void
v16_fma_turned(v16 *s, size_t rows, const float *a, size_t step, const float *const *from)
{
    for (size_t at = 0; at < 16; at += 8) {
        __m256 r[8];
        ck_turned8(r, from, at, 8);
        for (size_t j = 0; j < 8; j++)
            for (size_t i = 0; i < rows; i++)
                s[i].lo = _mm256_fmadd_ps(_mm256_set1_ps(a[i * step + at + j]), r[j], s[i].lo);
        ck_turned8(r, from + 8, at, 8);
        for (size_t j = 0; j < 8; j++)
            for (size_t i = 0; i < rows; i++)
                s[i].hi = _mm256_fmadd_ps(_mm256_set1_ps(a[i * step + at + j]), r[j], s[i].hi);
    }
}

static inline __attribute__((always_inline)) v16
v16_fma_each(v16 s, const float *x, const float *const *from)
{
    for (size_t at = 0; at < 16; at += 8) {
        __m256 r[8];
        ck_turned8(r, from, at, 8);
        for (size_t j = 0; j < 8; j++)
            s.lo = _mm256_fmadd_ps(_mm256_loadu_ps(x + 16 * (at + j)), r[j], s.lo);
        ck_turned8(r, from + 8, at, 8);
        for (size_t j = 0; j < 8; j++)
            s.hi = _mm256_fmadd_ps(_mm256_loadu_ps(x + 16 * (at + j) + 8), r[j], s.hi);
    }
    return s;
}
#endif

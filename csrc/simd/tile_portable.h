#ifndef CK_TILE_PORTABLE_H
#define CK_TILE_PORTABLE_H

enum { CK_TILE_ROWS = 2, CK_TILE_PANELS = 1 }; /* 8 sums of 4 lanes, 4 of b, 1 of a: 13 of 16 registers */
#define CK_TILES(_) _(1) _(2)

static inline void
v16_transpose(float *to, size_t step, const float *const *from, size_t n)
{
    for (size_t i = 0; i < 16; i++)
        for (size_t j = 0; j < n; j++)
            to[j * step + i] = from[i][j];
}

static inline void
v16_fma_turned(v16 *s, size_t rows, const float *a, size_t step, const float *const *from)
{
    float turned[16 * 16];
    v16_transpose(turned, 16, from, 16);
    for (size_t j = 0; j < 16; j++)
        for (size_t i = 0; i < rows; i++)
            s[i] = v16_fma(v16_splat(a[i * step + j]), v16_load_f32(turned + 16 * j, 16), s[i]);
}

static inline v16
v16_fma_each(v16 s, const float *x, const float *const *from)
{
    float turned[16 * 16];
    v16_transpose(turned, 16, from, 16);
    for (size_t j = 0; j < 16; j++)
        s = v16_fma(v16_load_f32(x + 16 * j, 16), v16_load_f32(turned + 16 * j, 16), s);
    return s;
}
#endif

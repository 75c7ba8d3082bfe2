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
#endif

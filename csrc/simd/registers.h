#ifndef CK_REGISTERS_H
#define CK_REGISTERS_H
/*
 * What depends on the register file: how many v16 fit into it, and sixteen of them turned.
 *
 *     CK_REGISTERS         v16 that the registers of this instruction set hold
 *     v16_transpose(x)     x[i] lane j  <->  x[j] lane i
 */
#include "simd/words.h"

#if defined(__AVX512F__)

enum { CK_REGISTERS = 32 };

static inline void
v16_transpose(v16 x[16])
{
    __m512 t[16], u[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) /* now u[i + c] holds columns c, 4 + c, 8 + c, 12 + c of rows i to i + 3 */
        for (int c = 0; c < 2; c++) {
            u[i + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + c]), _mm512_castps_pd(t[i + c + 2])));
            u[i + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + c]), _mm512_castps_pd(t[i + c + 2])));
        }
    for (int c = 0; c < 4; c++) {
        const __m512 ab01 = _mm512_shuffle_f32x4(u[c], u[c + 4], 0x44), ab23 = _mm512_shuffle_f32x4(u[c], u[c + 4], 0xee);
        const __m512 cd01 = _mm512_shuffle_f32x4(u[c + 8], u[c + 12], 0x44), cd23 = _mm512_shuffle_f32x4(u[c + 8], u[c + 12], 0xee);
        x[c] = _mm512_shuffle_f32x4(ab01, cd01, 0x88);
        x[c + 4] = _mm512_shuffle_f32x4(ab01, cd01, 0xdd);
        x[c + 8] = _mm512_shuffle_f32x4(ab23, cd23, 0x88);
        x[c + 12] = _mm512_shuffle_f32x4(ab23, cd23, 0xdd);
    }
}

#elif defined(__AVX2__)

enum { CK_REGISTERS = 8 };

static inline void
ck_transpose_eight(__m256 x[8])
{
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int c = 0; c < 2; c++) {
            u[i + 2 * c] = _mm256_shuffle_ps(t[i + c], t[i + c + 2], 0x44);
            u[i + 2 * c + 1] = _mm256_shuffle_ps(t[i + c], t[i + c + 2], 0xee);
        }
    for (int c = 0; c < 4; c++) {
        x[c] = _mm256_permute2f128_ps(u[c], u[c + 4], 0x20);
        x[c + 4] = _mm256_permute2f128_ps(u[c], u[c + 4], 0x31);
    }
}

static inline void
v16_transpose(v16 x[16])
{
    __m256 low[2][8], high[2][8]; /* columns 0 to 7 and 8 to 15 of the first eight rows, of the others */
    for (int i = 0; i < 16; i++) {
        low[i / 8][i % 8] = x[i].lo;
        high[i / 8][i % 8] = x[i].hi;
    }
    for (int half = 0; half < 2; half++) {
        ck_transpose_eight(low[half]);
        ck_transpose_eight(high[half]);
    }
    for (int i = 0; i < 8; i++) {
        x[i] = (v16){low[0][i], low[1][i]};
        x[i + 8] = (v16){high[0][i], high[1][i]};
    }
}

#else

enum { CK_REGISTERS = 4 };

static inline void
v16_transpose(v16 x[16])
{
    float from[16][16], to[16][16];
    for (int i = 0; i < 16; i++)
        v16_store_f32(from[i], x[i], 16);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++)
            to[j][i] = from[i][j];
    for (int i = 0; i < 16; i++)
        x[i] = v16_load_f32(to[i], 16);
}

#endif
#endif

#ifndef CK_TILE_H
#define CK_TILE_H
/*
 * Words for matrix products (linear, attention): sums that stay in registers, and the order of their operands.
 *
 *     CK_TILE_ROWS, CK_TILE_PANELS   the largest tile whose sums fit the registers of this instruction set
 *     v16_transpose(to, step, from, n)   to[j*step + i] = from[i][j], i < 16, j < n <= 16; float rows of 16
 *     v16_fma_turned(s, rows, a, step, from)   s[i] lane l: + a[i*step + j] * from[l][j], one chain, j = 0..15
 *     v16_fma_each(s, x, from)       s lane l: + x[16j + l] * from[l][j], one chain, j = 0..15
 *     ck_tile(rows, panels, ...)     sums of a tile over k, in the order of additions of every product here
 *     ck_tile_elem(rows, panels, ...)   the same with panels of the call's dtype, widened as they are read
 *
 * A panel is [k][16]: sixteen columns of the right operand.
 */
#include "simd/words.h"

#if defined(CK_PORTABLE)
#include "simd/tile_portable.h"
#elif defined(__AVX512F__)
#include "simd/tile_avx512.h"
#elif defined(__AVX2__)
#include "simd/tile_avx2.h"
#else
#include "simd/tile_portable.h"
#endif

/* For loops over tile constants: written out in full, so that an array of v16 becomes registers. */
#if defined(__clang__)
#define CK_UNROLL _Pragma("clang loop unroll(full)")
#else
#define CK_UNROLL _Pragma("GCC unroll 16")
#endif

/* From one partial sum to the next: see docs/decisions/0002-order-of-additions.md. */
enum { CK_CHAIN = 64 };

/* sum[i][16j..] = (first ? 0 : what is there) + sum_k a[i*step + k] * b[j*panel + 16k..], one chain a lane */
static inline __attribute__((always_inline)) void
ck_tile_chain(size_t rows, size_t panels, const float *a, size_t step, const void *b, bool floats, size_t panel, size_t K,
              float *sum, size_t stride, bool first)
{
    v16 s[CK_TILE_ROWS][CK_TILE_PANELS];

    CK_UNROLL for (size_t i = 0; i < rows; i++)
        CK_UNROLL for (size_t j = 0; j < panels; j++)
            s[i][j] = v16_zero();
    for (size_t k = 0; k < K; k++) {
        v16 bk[CK_TILE_PANELS];
        CK_UNROLL for (size_t j = 0; j < panels; j++)
            bk[j] = floats ? v16_load_f32((const float *)b + j * panel + 16 * k, 16)
                           : v16_load((const elem *)b + j * panel + 16 * k, 16);
        CK_UNROLL for (size_t i = 0; i < rows; i++) {
            const v16 ak = v16_splat(a[i * step + k]);
            CK_UNROLL for (size_t j = 0; j < panels; j++)
                s[i][j] = v16_fma(ak, bk[j], s[i][j]);
        }
    }
    CK_UNROLL for (size_t i = 0; i < rows; i++)
        CK_UNROLL for (size_t j = 0; j < panels; j++) {
            float *at = sum + i * stride + 16 * j;
            v16_store_f32(at, first ? s[i][j] : v16_add(v16_load_f32(at, 16), s[i][j]), 16);
        }
}

/*
 * The same for any K: k in blocks of CK_CHAIN, each a chain of v16_fma from zero, k ascending, added to `sum` in turn.
 * rows and panels are constants where it is called; `sum` has rows `stride` apart.
 */
static inline __attribute__((always_inline)) void
ck_tile(size_t rows, size_t panels, const float *a, size_t step, const float *b, size_t panel, size_t K, float *sum,
        size_t stride, bool first)
{
    for (size_t k = 0; k < K; k += CK_CHAIN)
        ck_tile_chain(rows, panels, a + k, step, b + 16 * k, true, panel, K - k < CK_CHAIN ? K - k : CK_CHAIN, sum, stride,
                      first && k == 0);
}

static inline __attribute__((always_inline)) void
ck_tile_elem(size_t rows, size_t panels, const float *a, size_t step, const elem *b, size_t panel, size_t K, float *sum,
             size_t stride, bool first)
{
    for (size_t k = 0; k < K; k += CK_CHAIN)
        ck_tile_chain(rows, panels, a + k, step, b + 16 * k, CK_IS_FLOAT, panel, K - k < CK_CHAIN ? K - k : CK_CHAIN, sum,
                      stride, first && k == 0);
}
#endif

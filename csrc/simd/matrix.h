#ifndef CK_MATRIX_H
#define CK_MATRIX_H
/*
 * Words for a matrix unit (AMX): eight tiles of 16 rows of 64 bytes, a thread's own.
 *
 *     ck_matrix_configure(&shape)     rows and bytes a row of each tile; all hold zeros then.  Nothing else may come first.
 *     ck_matrix_begin()               the same, all of them 16 x 64
 *     ck_matrix_end()                 gives them up; a thread that keeps them makes every switch of threads dear
 *     CK_MATRIX_ZERO(t)
 *     CK_MATRIX_LOAD(t, p, step)      row i from p + i*step bytes
 *     CK_MATRIX_STORE(t, p, step)
 *     CK_MATRIX_DOT_BF16(c, a, b)     c[m][n] += sum_k a[m][k] * b[k][n], 16 floats, 32 and 32 bfloat16 a row
 *
 * t, c, a and b are digits, 0 to 7.  Tiles hold bytes: a product of other types (int8, say) is one more word, on the same
 * loads and stores.
 *
 * The right operand of a product lies in pairs: row r of its tile has k = 2r and 2r + 1 of column n side by side, so that
 * both operands meet as words of 32 bits.
 *
 * The arithmetic of CK_MATRIX_DOT_BF16, which is that of the instruction tdpbf16ps, from c on, exactly:
 *
 *     e = o = +0;  for k = 0, 2, 4, ... 30:  e = fma(a[m][k], b[k][n], e),  o = fma(a[m][k+1], b[k+1][n], o)
 *     c = c + (e + o)
 *
 * all in float32, each rounded to nearest even; an operand or a result below the smallest normal number is zero.
 *
 * Two headers give these words: amx.h by the instructions; amx_model.h in plain C, with -DCK_MATRIX_MODEL, for tests
 * on machines without them.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* As the hardware reads it: 64 bytes.  Palette 1 has eight tiles of up to 16 rows of up to 64 bytes. */
typedef struct {
    uint8_t palette, start_row, none[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
} ck_matrix_shape;
_Static_assert(sizeof(ck_matrix_shape) == 64, "ldtilecfg reads 64 bytes");

enum { CK_MATRIX_TILES = 8, CK_MATRIX_ROWS = 16, CK_MATRIX_ROW = 64, CK_MATRIX_TILE = 1024 /* bytes */ };

#if defined(CK_MATRIX_MODEL)
#include "simd/amx_model.h"
#else
#include "simd/amx.h"
#endif

static inline void
ck_matrix_begin(void)
{
    ck_matrix_shape shape = {.palette = 1};
    for (size_t t = 0; t < CK_MATRIX_TILES; t++) {
        shape.bytes[t] = CK_MATRIX_ROW;
        shape.rows[t] = CK_MATRIX_ROWS;
    }
    ck_matrix_configure(&shape);
}
#endif

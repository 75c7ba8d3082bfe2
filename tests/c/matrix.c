/* The model of the matrix unit, word by word, for test_gemm_tiles.py. */
#include "simd/matrix.h"

#define PUBLIC __attribute__((visibility("default")))
PUBLIC void matrix_configure(const ck_matrix_shape *shape);
PUBLIC void matrix_end(void);
PUBLIC void matrix_dot(const void *a, size_t step_a, const void *b, size_t step_b, void *c, size_t step_c);
PUBLIC void matrix_dot_with_itself(void);
PUBLIC void matrix_load(const void *p, size_t step, void *to);

void
matrix_configure(const ck_matrix_shape *shape)
{
    ck_matrix_configure(shape);
}

void
matrix_end(void)
{
    ck_matrix_end();
}

/* c in tile 0, a in 1, b in 2 */
void
matrix_dot(const void *a, size_t step_a, const void *b, size_t step_b, void *c, size_t step_c)
{
    CK_MATRIX_LOAD(0, c, step_c);
    CK_MATRIX_LOAD(1, a, step_a);
    CK_MATRIX_LOAD(2, b, step_b);
    CK_MATRIX_DOT_BF16(0, 1, 2);
    CK_MATRIX_STORE(0, c, step_c);
}

void
matrix_dot_with_itself(void)
{
    CK_MATRIX_DOT_BF16(0, 1, 1);
}

/* Tile 0 from p, and on to rows of 64 bytes, whatever its shape is then. */
void
matrix_load(const void *p, size_t step, void *to)
{
    CK_MATRIX_LOAD(0, p, step);
    __builtin_memcpy(to, ck_matrix.tile[0], CK_MATRIX_TILE);
}

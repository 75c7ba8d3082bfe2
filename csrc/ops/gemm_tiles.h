#ifndef CK_GEMM_TILES_H
#define CK_GEMM_TILES_H
#include "ops/gemm.h"
/*
 * gemm_tiles -- the products of gemm.h on a matrix unit (AMX), whose operands are bfloat16
 *
 * An operand is taken in parts, bfloat16 numbers that add up to it: x = hi + mid + low, each the nearest to what is left.
 * A bfloat16 is its own hi.  The sum over k runs through products of parts:
 *
 *     bfloat16 x bfloat16                hi hi
 *     float beside bfloat16              mid hi', hi hi
 *     float x float, CK_PRECISION_MEDIUM mid hi', hi' mid, hi hi
 *     float x float, CK_PRECISION_HIGH   low hi', mid hi', mid mid, hi' mid, hi' low, hi hi
 *
 * hi' is hi, but 0 where that is infinite or NaN: those enter into one product alone, or infinity times a mid of the other
 * sign would make a NaN of what is infinite.
 *
 * Order of every sum.  A step is 32 of k, anchored at 0, with zeros past the end, added as simd/matrix.h says.  One product:
 * the steps, ascending.  Several: blocks of 256 of k, each from zero; in a block for each step all products but the
 * last, in their order, then the last one's steps, so that the small ones meet small sums; then the blocks, ascending.
 * Nothing else enters into the bits of an element: not M, N, its place, the batch, the threads, packing or transposes.
 * What follows the sum is done by the kernel `gemm`, as after OpenBLAS.
 */
enum { CK_HI, CK_FINITE, CK_MID, CK_LOW, CK_MOST_PARTS }; /* in the order in which they are kept */
enum { CK_MOST_PRODUCTS = 6 };

typedef struct {
    size_t parts_a, parts_b; /* how many of the parts above are kept */
    size_t n;
    struct {
        uint8_t a, b;
    } product[CK_MOST_PRODUCTS];
} ck_part_products;

struct ck_gemm_tiles {
    struct ck_gemm gemm;
    const ck_part_products *parts;
};

enum {
    CK_TILES_K = 256,   /* of k at a time: a block of the order where products are several */
    CK_TILES_STEP = 32, /* of k that one instruction takes */
};

/* Bytes of a task's scratch, from its begin on: the sums, rows `columns` apart; tiles of A; tiles of a strip of B. */
typedef struct {
    size_t rows, a, b, kept; /* rows of the sums; bytes each; tiles along k that are kept of A at a time */
} ck_tiles_scratch;

static inline ck_tiles_scratch
ck_tiles_scratch_of(const struct ck_gemm *a, const ck_part_products *parts)
{
    const size_t down = (a->rows + 15) / 16, all = (a->K + CK_TILES_STEP - 1) / CK_TILES_STEP;
    const size_t most = CK_TILES_K / CK_TILES_STEP, kept = a->thin || all < most ? all : most;
    return (ck_tiles_scratch){.rows = 16 * down, .kept = kept, .a = parts->parts_a * down * kept * 1024,
                              .b = parts->parts_b * 2 * most * 1024};
}

typedef enum { CK_PRECISION_HIGHEST, CK_PRECISION_HIGH, CK_PRECISION_MEDIUM, CK_PRECISIONS } ck_precision;

/* How exactly float32 products must be computed, for the process.  It changes something where there is a matrix unit. */
void ck_set_matmul_precision(ck_precision precision);
ck_precision ck_matmul_precision(void);

/* The products of parts for this call, or NULL: it is not for a matrix unit. */
const ck_part_products *ck_gemm_parts(const ck_kernels *k, const struct ck_gemm *a);

/* The same call by such products. */
ck_status ck_gemm_tiles(const ck_kernels *k, const struct ck_gemm *a, const ck_part_products *parts);
#endif

#ifndef CK_GEMM_H
#define CK_GEMM_H
#include "ops/op.h"
#include "runtime/blas.h"
/*
 * gemm -- the matrix product that linear and matmul are made of
 *
 *     sum[b,m,n] = sum_k A[b,m,k] * B[b,k,n]
 *     pre[b,m,n] = sum[b,m,n] + bias[n]
 *     c[b,m,n]   = activation(pre[b,m,n]) + residual[b,m,n]
 *
 * A[b,m,k] is a[b,m,k], or a[b,k,m] with transpose_a; B[b,k,n] is b[b,k,n], or b[b,n,k] with transpose_b.  Rows of a
 * batch are counted on: row m of item b is row b*M + m; with share_a (share_b) all items have the one a (b).  Where
 * `packed` is given (gemm_pack.h), it is read instead of b; 16 bits are widened as they are read.
 *
 * Order of every sum: k in blocks of 64 (CK_CHAIN of simd/tile.h), anchored at 0; inside a block one chain of fused
 * multiply-adds from zero, k ascending; then the blocks, ascending.  Nothing else enters into the bits of an element: not M, N, its place,
 * the batch, the threads, packing, transposes, nor avx2 or avx512.  baseline multiplies, then adds.
 *
 * Where OpenBLAS is chosen (runtime/blas.h), the order of the sums is its own.  The kernel then finds the sums of its
 * block in task.work, rows `columns` apart, and does what follows them.
 *
 * A thin block has few rows: it keeps all of K of A in scratch and streams B, a panel after the other; any other goes
 * through K in cache blocks and through B inside them.
 *
 * In place: c may be residual (so a gradient accumulates).  The grid: blocks of `rows` by `columns`, rows fastest, so
 * that neighbours in time share a block of B.
 */
#define CK_ARGS_gemm(_)                            \
    _(OVER,    elem,   c,           "B* M N")      \
    _(OPT_OUT, elem,   pre,         "B* M N")      \
    _(IN,      elem,   a,           "B* M K")      \
    _(OPT_IN,  elem,   b,           "B* K N")      \
    _(OPT_INV, elem,   packed,      "P K L")       \
    _(OPT_INV, elem,   bias,        "N")           \
    _(OPT_IN,  elem,   residual,    "B* M N")      \
    _(FLAG,    int,    transpose_a, "")            \
    _(FLAG,    int,    transpose_b, "")            \
    _(FLAG,    int,    share_a,     "")            \
    _(FLAG,    int,    share_b,     "")            \
    _(INT,     int64_t, activation, "")            \
    _(SIZE,    size_t, B,           "")            \
    _(SIZE,    size_t, M,           "")            \
    _(SIZE,    size_t, N,           "")            \
    _(SIZE,    size_t, K,           "")            \
    _(SIZE,    size_t, rows,        "")            \
    _(SIZE,    size_t, columns,     "")            \
    _(FLAG,    int,    thin,        "")
CK_DECLARE(gemm) /* fills in rows, columns and thin itself */

/* The same by OpenBLAS: by its product. */
ck_status ck_gemm_blas(const ck_kernels *k, const struct ck_gemm *a, ck_sgemm *sgemm);

/* The functions of ops/activation.h. */
typedef enum {
    CK_NO_ACTIVATION, CK_RELU, CK_SILU, CK_GELU, CK_GELU_TANH, CK_GELU_SIGMOID, CK_SIGMOID, CK_TANH, CK_ACTIVATIONS
} ck_activation;

enum {
    CK_GEMM_K = 256,       /* of k at a time: a multiple of CK_CHAIN, so it does not enter into the order */
    CK_GEMM_ROWS = 42,     /* rows of a task are at most some times as many: 3 tiles of 14, 7 of 6 */
    CK_GEMM_COLUMNS = 256, /* most columns of a task */
    CK_GEMM_STEP = CK_GEMM_K + 16, /* from row to row of A in scratch: rows of a tile fall in different cache sets */
    CK_PANEL = 16,         /* columns of a panel */
    CK_GEMM_PANELS = 4,    /* most panels a kernel packs at a time */
    CK_GEMM_THIN = 16,     /* most rows of a thin block */
};

/* Floats that one row times a large weight works in, besides (kernels/gemm_row.h). */
static inline size_t ck_row_scratch(size_t K) { return K / 1024 * (1024 + 256); }

/* One task's block of c. */
typedef struct {
    size_t batch, m, n, rows, columns; /* rows m.. and columns n.. of item batch */
} ck_gemm_block;

static inline ck_gemm_block
ck_gemm_block_at(const struct ck_gemm *a, size_t task)
{
    const size_t down = a->M / a->rows + (a->M % a->rows != 0), across = a->N / a->columns + (a->N % a->columns != 0);
    const size_t m = task % down * a->rows, n = task / down % across * a->columns;
    return (ck_gemm_block){task / down / across, m, n, a->M - m < a->rows ? a->M - m : a->rows,
                           a->N - n < a->columns ? a->N - n : a->columns};
}
#endif

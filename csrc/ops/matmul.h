#ifndef CK_MATMUL_H
#define CK_MATMUL_H
#include "ops/gemm.h"
/*
 * matmul -- a batch of matrix products
 *
 *     y[b,m,n]  = sum_k A[b,m,k] * B[b,k,n]
 *
 *     dA[b,m,k] = sum_n dy[b,m,n] * B[b,k,n]
 *     dB[b,k,n] = sum_m A[b,m,k] * dy[b,m,n]
 *
 * Four ops, one for each way the operands lie: matmul_nt has b as [N, K], matmul_tn has a as [K, M].  b has the leading
 * axes of a, D = B, or none, D = 1: then all items share it, and its gradient is summed over them: over b and m as over
 * one axis where a is not transposed, item by item where it is.
 *
 * Saved for backward: a and b.  Sums as in gemm.h: the same bits for every M, batch and way of lying.
 */
#define CK_ARGS_MATMUL_FWD(_, A, B_)   \
    _(OUT,  elem,   y, "B* M N")       \
    _(IN,   elem,   a, A)              \
    _(IN,   elem,   b, B_)             \
    _(SIZE, size_t, B, "")             \
    _(SIZE, size_t, D, "")             \
    _(SIZE, size_t, M, "")             \
    _(SIZE, size_t, N, "")             \
    _(SIZE, size_t, K, "")
#define CK_ARGS_MATMUL_BWD(_, A, B_)   \
    _(OPT_OUT, elem,   da, A)          \
    _(OPT_OUT, elem,   db, B_)         \
    _(IN,      elem,   dy, "B* M N")   \
    _(IN,      elem,   a,  A)          \
    _(IN,      elem,   b,  B_)         \
    _(SIZE,    size_t, B,  "")         \
    _(SIZE,    size_t, D,  "")         \
    _(SIZE,    size_t, M,  "")         \
    _(SIZE,    size_t, N,  "")         \
    _(SIZE,    size_t, K,  "")

#define CK_ARGS_matmul_nn_fwd(_) CK_ARGS_MATMUL_FWD(_, "B* M K", "D* K N")
#define CK_ARGS_matmul_nt_fwd(_) CK_ARGS_MATMUL_FWD(_, "B* M K", "D* N K")
#define CK_ARGS_matmul_tn_fwd(_) CK_ARGS_MATMUL_FWD(_, "B* K M", "D* K N")
#define CK_ARGS_matmul_tt_fwd(_) CK_ARGS_MATMUL_FWD(_, "B* K M", "D* N K")
CK_DECLARE(matmul_nn_fwd)
CK_DECLARE(matmul_nt_fwd)
CK_DECLARE(matmul_tn_fwd)
CK_DECLARE(matmul_tt_fwd)

#define CK_ARGS_matmul_nn_bwd(_) CK_ARGS_MATMUL_BWD(_, "B* M K", "D* K N")
#define CK_ARGS_matmul_nt_bwd(_) CK_ARGS_MATMUL_BWD(_, "B* M K", "D* N K")
#define CK_ARGS_matmul_tn_bwd(_) CK_ARGS_MATMUL_BWD(_, "B* K M", "D* K N")
#define CK_ARGS_matmul_tt_bwd(_) CK_ARGS_MATMUL_BWD(_, "B* K M", "D* N K")
CK_DECLARE(matmul_nn_bwd)
CK_DECLARE(matmul_nt_bwd)
CK_DECLARE(matmul_tn_bwd)
CK_DECLARE(matmul_tt_bwd)
#endif

#ifndef CK_LINEAR_H
#define CK_LINEAR_H
#include "ops/gemm.h"
/*
 * linear -- a row times a weight
 *
 *     pre[r,n]     = sum_k x[r,k] * weight[n,k] + bias[n]
 *     y[r,n]       = activation(pre[r,n]) + residual[r,n]
 *
 *     dz[r,n]      = dy[r,n] * activation'(pre[r,n])
 *     dx[r,k]      = sum_n dz[r,n] * weight[n,k]
 *     dweight[n,k] = sum_r dz[r,n] * x[r,k]             added to what is there when `accumulate`
 *     dbias[n]     = sum_r dz[r,n]                      the same
 *     dresidual    = dy
 *
 * Saved for backward: x, weight, and pre where there is an activation.  In place: y may be residual.  `packed` holds
 * the weight in panels (linear_pack) and is read instead of it; one of the two may be absent.  Backward reads only what
 * the gradients asked for need: x for dweight, weight for dx.
 *
 * Sums over k, n and r as in gemm.h, so a row has the same bits alone and in any batch; dbias in double, r ascending.
 */
#define CK_ARGS_linear_fwd(_)                      \
    _(OVER,    elem,    y,          "R* N")        \
    _(OPT_OUT, elem,    pre,        "R* N")        \
    _(IN,      elem,    x,          "R* K")        \
    _(OPT_IN,  elem,    weight,     "N K")         \
    _(OPT_INV, elem,    packed,     "P K L")       \
    _(OPT_INV, elem,    bias,       "N")           \
    _(OPT_IN,  elem,    residual,   "R* N")        \
    _(INT,     int64_t, activation, "")            \
    _(SIZE,    size_t,  R,          "")            \
    _(SIZE,    size_t,  N,          "")            \
    _(SIZE,    size_t,  K,          "")            \
    _(SIZE,    size_t,  P,          "")            \
    _(SIZE,    size_t,  L,          "")
CK_DECLARE(linear_fwd)

#define CK_ARGS_linear_bwd(_)                      \
    _(OPT_OUT,  elem,    dx,         "R* K")       \
    _(OPT_OUT,  elem,    dweight,    "N K")        \
    _(OPT_OUT,  weight,  dbias,      "N")          \
    _(OPT_OUT,  elem,    dresidual,  "R* N")       \
    _(IN,       elem,    dy,         "R* N")       \
    _(OPT_IN,   elem,    x,          "R* K")       \
    _(OPT_IN,   elem,    weight,     "N K")        \
    _(OPT_IN,   elem,    pre,        "R* N")       \
    _(INT,      int64_t, activation, "")           \
    _(FLAG,     int,     accumulate, "")           \
    _(SIZE,     size_t,  R,          "")           \
    _(SIZE,     size_t,  N,          "")           \
    _(SIZE,     size_t,  K,          "")
CK_DECLARE(linear_bwd)

/* packed [P,K,L] = weight [N,K] in panels: P = N / 16 rounded up, L = 16. */
#define CK_ARGS_linear_pack(_)                     \
    _(OUTV,    elem,    packed,     "P K L")       \
    _(IN,      elem,    weight,     "N K")         \
    _(SIZE,    size_t,  N,          "")            \
    _(SIZE,    size_t,  K,          "")            \
    _(SIZE,    size_t,  P,          "")            \
    _(SIZE,    size_t,  L,          "")
CK_DECLARE(linear_pack)

/* Elements of a packed weight. */
static inline size_t
ck_packed_size(size_t N, size_t K)
{
    return (N + CK_PANEL - 1) / CK_PANEL * CK_PANEL * K;
}
#endif

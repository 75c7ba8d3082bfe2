#ifndef CK_LOG_SOFTMAX_H
#define CK_LOG_SOFTMAX_H
#include "ops/op.h"
/*
 * log_softmax -- the logarithm of a softmax, without the softmax
 *
 *     lse[r]  = max_c x[r,c] + log sum_c exp(x[r,c] - max_c x[r,c])
 *     y[r,c]  = x[r,c] - lse[r]
 *
 *     total[r] = sum_c dy[r,c]
 *     dx[r,c]  = dy[r,c] - exp(y[r,c]) * total[r]
 *
 * lse is kept in two floats, as one would lose an ulp of it in every y.  A row whose sum is NaN, or 0 because all is
 * -inf, is NaN throughout, as in PyTorch.  Saved for backward: y.  In place: y may be x; dx may be dy or y.  Sums over
 * c in blocks of 2048 (forward) and 256 (backward), block by block in double; longer rows than CK_PIECE piece by piece.
 */
#define CK_ARGS_log_softmax_fwd(_)           \
    _(OVER, elem,    y,       "R* C")        \
    _(IN,   elem,    x,       "R* C")        \
    _(SIZE, size_t,  R,       "")            \
    _(SIZE, size_t,  C,       "")
CK_DECLARE(log_softmax_fwd)

#define CK_ARGS_log_softmax_bwd(_)           \
    _(OVER, elem,    dx,      "R* C")        \
    _(IN,   elem,    dy,      "R* C")        \
    _(IN,   elem,    y,       "R* C")        \
    _(SIZE, size_t,  R,       "")            \
    _(SIZE, size_t,  C,       "")
CK_DECLARE(log_softmax_bwd)
#endif

#ifndef CK_SOFTMAX_H
#define CK_SOFTMAX_H
#include "ops/op.h"
/*
 * softmax -- exponentials of a row, scaled to sum to one
 *
 *     z[r,c]  = scale * x[r,c] + mask[r,c]         -inf where mask is false or -inf, or `causal` and c > r % queries
 *     y[r,c]  = exp(z[r,c] - max_c z[r,c]) / sum_c of the same
 *
 *     dot[r]  = sum_c dy[r,c] * y[r,c]
 *     dx[r,c] = scale * y[r,c] * (dy[r,c] - dot[r])
 *
 * `queries` is the size of the last axis but one: query t of them stands at position t, and sees c <= t.  What is masked
 * is 0 in y, whatever x holds there; a row of which everything is masked is 0.  A row whose sum is NaN, or 0 because all
 * that is not masked is -inf, is NaN throughout, as in PyTorch.  Saved for backward: y.  In place: y may be x; dx may be
 * dy or y.  Sums over c in blocks of 2048 (forward) and 512 (dot), block by block in double; rows of more than CK_PIECE
 * elements piece by piece.  A forward task's scratch is a row of floats, or a piece of one.
 */
#define CK_ARGS_softmax_fwd(_)               \
    _(OVER, elem,    y,       "R* C")        \
    _(IN,   elem,    x,       "R* C")        \
    _(MASK, elem,    mask,    "R* C")        \
    _(REAL, double,  scale,   "")            \
    _(FLAG, int,     causal,  "")            \
    _(INT,  int64_t, queries, "")            \
    _(SIZE, size_t,  R,       "")            \
    _(SIZE, size_t,  C,       "")
CK_DECLARE(softmax_fwd)

#define CK_ARGS_softmax_bwd(_)               \
    _(OVER, elem,    dx,      "R* C")        \
    _(IN,   elem,    dy,      "R* C")        \
    _(IN,   elem,    y,       "R* C")        \
    _(REAL, double,  scale,   "")            \
    _(SIZE, size_t,  R,       "")            \
    _(SIZE, size_t,  C,       "")
CK_DECLARE(softmax_bwd)
#endif

#ifndef CK_L2_NORM_H
#define CK_L2_NORM_H
#include "ops/op.h"
/*
 * l2_norm -- a row divided by its length, as for the queries and keys of linear attention
 *
 *     rnorm[r]   = 1 / sqrt(sum_c x[r,c]^2 + eps)
 *     y[r,c]     = x[r,c] * rnorm[r]
 *
 *     dot[r]     = sum_c dy[r,c] * x[r,c]
 *     dx[r,c]    = rnorm[r] * (dy[r,c] - x[r,c] * rnorm[r]^2 * dot[r])
 *
 * Saved for backward: rnorm.  In place: y may be x, dx may be dy.  Sums over c: blocks of 4096, in each 32 lanes
 * (c % 32), then by halves; blocks ascending in double, piece by piece of 65536.
 */
#define CK_ARGS_l2_norm_fwd(_)                  \
    _(OVER,     elem,   y,      "R* C")         \
    _(OPT_OUTV, float,  rnorm,  "R*")           \
    _(IN,       elem,   x,      "R* C")         \
    _(REAL,     double, eps,    "")             \
    _(SIZE,     size_t, R,      "")             \
    _(SIZE,     size_t, C,      "")
CK_DECLARE(l2_norm_fwd)

#define CK_ARGS_l2_norm_bwd(_)                  \
    _(OVER,     elem,   dx,     "R* C")         \
    _(IN,       elem,   dy,     "R* C")         \
    _(IN,       elem,   x,      "R* C")         \
    _(INV,      float,  rnorm,  "R*")           \
    _(SIZE,     size_t, R,      "")             \
    _(SIZE,     size_t, C,      "")
CK_DECLARE(l2_norm_bwd)
#endif

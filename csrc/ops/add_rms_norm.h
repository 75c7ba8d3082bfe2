#ifndef CK_ADD_RMS_NORM_H
#define CK_ADD_RMS_NORM_H
#include "ops/op.h"
/*
 * add_rms_norm -- the residual connection and the norm that follows it, in one pass
 *
 *     h[r,c]     = residual[r,c] + x[r,c]
 *     rstd[r]    = 1 / sqrt(sum_c h[r,c]^2 / C + eps)
 *     y[r,c]     = h[r,c] * rstd[r] * weight[c]
 *
 *     g[r,c]     = dy[r,c] * weight[c],  dot[r] = sum_c g[r,c] * h[r,c]
 *     dx[r,c]    = dh[r,c] + rstd[r] * (g[r,c] - h[r,c] * rstd[r]^2 * dot[r] / C)
 *     dresidual  = dx: the same numbers, written a second time only where asked for
 *     dweight[c] = sum_r dy[r,c] * h[r,c] * rstd[r]          added to what is there when `accumulate`
 *
 * h is rounded to the dtype before it is normed, so the bits are those of add and rms_norm one after the other.
 * Saved for backward: h, rstd.  In place: y and h may be x or residual, each its own; dx may be dy or dh.  Sums as in
 * rms_norm; over r in blocks of CK_ADD_RMS_NORM_ROWS rows, then block by block in double.
 */
#define CK_ARGS_add_rms_norm_fwd(_)               \
    _(OVER,     elem,   y,        "R* C")         \
    _(OVER,     elem,   h,        "R* C")         \
    _(OPT_OUTV, float,  rstd,     "R*")           \
    _(IN,       elem,   x,        "R* C")         \
    _(IN,       elem,   residual, "R* C")         \
    _(IN,       weight, weight,   "C")            \
    _(REAL,     double, eps,      "")             \
    _(SIZE,     size_t, R,        "")             \
    _(SIZE,     size_t, C,        "")
CK_DECLARE(add_rms_norm_fwd)

#define CK_ARGS_add_rms_norm_bwd(_)               \
    _(OVER,     elem,   dx,         "R* C")       \
    _(OPT_OUT,  elem,   dresidual,  "R* C")       \
    _(OPT_OUT,  weight, dweight,    "C")          \
    _(IN,       elem,   dy,         "R* C")       \
    _(IN,       elem,   dh,         "R* C")       \
    _(IN,       elem,   h,          "R* C")       \
    _(IN,       weight, weight,     "C")          \
    _(INV,      float,  rstd,       "R*")         \
    _(FLAG,     int,    accumulate, "")           \
    _(SIZE,     size_t, R,          "")           \
    _(SIZE,     size_t, C,          "")
CK_DECLARE(add_rms_norm_bwd)

enum { CK_ADD_RMS_NORM_ROWS = 32 }; /* a block, which leaves one row of dweight, [C]; a task takes one or more of them */
#endif

#ifndef CK_RMS_NORM_H
#define CK_RMS_NORM_H
#include "ops/op.h"
/*
 * rms_norm -- root-mean-square normalisation                       (Zhang and Sennrich 2019, arXiv:1910.07467)
 *
 *     w[c]       = offset + weight[c], 1 where there is no weight
 *     rstd[r]    = 1 / sqrt(sum_c x[r,c]^2 / C + eps)
 *     y[r,c]     = x[r,c] * rstd[r] * w[c]
 *
 *     dot[r]     = sum_c dy[r,c] * w[c] * x[r,c]
 *     dx[r,c]    = rstd[r] * (dy[r,c] * w[c] - x[r,c] * rstd[r]^2 * dot[r] / C)
 *     dweight[c] = sum_r dy[r,c] * x[r,c] * rstd[r]          added to what is there when `accumulate`
 *
 * Saved for backward: rstd.  In place: y may be x, dx may be dy.  Sums over c: blocks of 4096, in each 32 lanes (c % 32),
 * then by halves; blocks ascending in double, piece by piece of 65536.  Over r in blocks of CK_RMS_NORM_ROWS rows, then
 * block by block in double: the same bits for any number of threads.
 */
#define CK_ARGS_rms_norm_fwd(_)                 \
    _(OVER,     elem,   y,      "R* C")         \
    _(OPT_OUTV, float,  rstd,   "R*")           \
    _(IN,       elem,   x,      "R* C")         \
    _(OPT_IN,   weight, weight, "C")            \
    _(REAL,     double, eps,    "")             \
    _(REAL,     double, offset, "")             \
    _(SIZE,     size_t, R,      "")             \
    _(SIZE,     size_t, C,      "")
CK_DECLARE(rms_norm_fwd)

#define CK_ARGS_rms_norm_bwd(_)                 \
    _(OVER,     elem,   dx,         "R* C")     \
    _(OPT_OUT,  weight, dweight,    "C")        \
    _(IN,       elem,   dy,         "R* C")     \
    _(IN,       elem,   x,          "R* C")     \
    _(OPT_IN,   weight, weight,     "C")        \
    _(INV,      float,  rstd,       "R*")       \
    _(REAL,     double, offset,     "")         \
    _(FLAG,     int,    accumulate, "")         \
    _(SIZE,     size_t, R,          "")         \
    _(SIZE,     size_t, C,          "")
CK_DECLARE(rms_norm_bwd)

enum { CK_RMS_NORM_ROWS = 32 }; /* a block, which leaves one row of dweight, [C]; a task takes one or more of them */
#endif

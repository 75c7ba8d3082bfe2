#ifndef CK_LAYER_NORM_H
#define CK_LAYER_NORM_H
#include "ops/op.h"
/*
 * layer_norm -- normalisation by mean and variance                         (Ba, Kiros and Hinton 2016, arXiv:1607.06450)
 *
 *     mean[r]    = sum_c x[r,c] / C
 *     rstd[r]    = 1 / sqrt(sum_c (x[r,c] - mean[r])^2 / C + eps)
 *     n[r,c]     = (x[r,c] - mean[r]) * rstd[r]
 *     y[r,c]     = n[r,c] * weight[c] + bias[c]                  1 and 0 where there is none
 *
 *     g[r,c]     = dy[r,c] * weight[c]
 *     dx[r,c]    = rstd[r] * (g[r,c] - sum_c g[r,c] / C - n[r,c] * sum_c (g[r,c] * n[r,c]) / C)
 *     dweight[c] = sum_r dy[r,c] * n[r,c]                        added to what is there when `add_weight`
 *     dbias[c]   = sum_r dy[r,c]                                 added to what is there when `add_bias`
 *
 * Saved for backward: mean and rstd; bias is there for its dtype alone.  In place: y may be x, dx may be dy.
 *
 * The variance takes two passes: it sums distances from a mean that is summed before.  A float cannot hold the mean of
 * a row with a large offset, so what it leaves out is summed along with the distances and taken off in double; backward
 * finds it again.  Sums over c: blocks of 4096, in each 32 lanes (c % 32), then by halves; blocks ascending in double,
 * piece by piece of 65536, their means and variances by the formula of Chan, Golub and LeVeque (1979).  Over r: blocks
 * of CK_LAYER_NORM_ROWS rows, then block by block in double: the same bits for any number of threads.
 */
#define CK_ARGS_layer_norm_fwd(_)               \
    _(OVER,     elem,   y,      "R* C")         \
    _(OPT_OUTV, float,  mean,   "R*")           \
    _(OPT_OUTV, float,  rstd,   "R*")           \
    _(IN,       elem,   x,      "R* C")         \
    _(OPT_IN,   weight, weight, "C")            \
    _(OPT_IN,   weight, bias,   "C")            \
    _(REAL,     double, eps,    "")             \
    _(SIZE,     size_t, R,      "")             \
    _(SIZE,     size_t, C,      "")
CK_DECLARE(layer_norm_fwd)

#define CK_ARGS_layer_norm_bwd(_)               \
    _(OVER,     elem,   dx,         "R* C")     \
    _(OPT_OUT,  weight, dweight,    "C")        \
    _(OPT_OUT,  weight, dbias,      "C")        \
    _(IN,       elem,   dy,         "R* C")     \
    _(IN,       elem,   x,          "R* C")     \
    _(OPT_IN,   weight, weight,     "C")        \
    _(OPT_IN,   weight, bias,       "C")        \
    _(INV,      float,  mean,       "R*")       \
    _(INV,      float,  rstd,       "R*")       \
    _(FLAG,     int,    add_weight, "")         \
    _(FLAG,     int,    add_bias,   "")         \
    _(SIZE,     size_t, R,          "")         \
    _(SIZE,     size_t, C,          "")
CK_DECLARE(layer_norm_bwd)

/*
 * Each block of CK_LAYER_NORM_ROWS rows leaves a row of dweight, and one of dbias: two arrays [blocks,C], one behind the
 * other (only the one that is wanted).  A task takes one or more blocks.
 */
enum { CK_LAYER_NORM_ROWS = 32 };
#endif

#ifndef CK_KL_DIV_H
#define CK_KL_DIV_H
#include "ops/op.h"
/*
 * kl_div -- how far a distribution is from its target, given the logarithm of the first
 *
 *     losses[r,c] = t log t - t input[r,c]            t = target[r,c]; t log t is 0 where t is
 *                   exp(t) (t - input[r,c])           where `log_target`
 *     loss        = sum_rc losses[r,c] / divisor      divisor: 1 for a sum, the number of elements for a mean, the size
 *                                                     of the first axis for a batchmean
 *
 *     g[r,c]      = dy[r,c], or dloss / divisor
 *     dinput[r,c] = -g[r,c] t                         -g[r,c] exp(t) where `log_target`
 *
 * A negative t has no logarithm: NaN.  The losses are float32, and so is their gradient dy.  In place: dinput may be
 * target or dy.  Order: elements in C order whatever the strides, in blocks of CK_LOSS_BLOCK, 4 times 16 lanes in each,
 * block by block in double.
 */
#define CK_ARGS_kl_div_fwd(_)                  \
    _(OPT_OUTV, float,  loss,       "")        \
    _(OPT_OUT,  float,  losses,     "R* C")    \
    _(IN,       elem,   input,      "R* C")    \
    _(IN,       elem,   target,     "R* C")    \
    _(REAL,     double, divisor,    "")        \
    _(FLAG,     int,    log_target, "")        \
    _(SIZE,     size_t, R,          "")        \
    _(SIZE,     size_t, C,          "")
CK_DECLARE(kl_div_fwd)

#define CK_ARGS_kl_div_bwd(_)                  \
    _(OVER,     elem,   dinput,     "R* C")    \
    _(OPT_IN,   float,  dy,         "R* C")    \
    _(REAL,     double, dloss,      "")        \
    _(IN,       elem,   target,     "R* C")    \
    _(REAL,     double, divisor,    "")        \
    _(FLAG,     int,    log_target, "")        \
    _(SIZE,     size_t, R,          "")        \
    _(SIZE,     size_t, C,          "")
CK_DECLARE(kl_div_bwd)

/* A forward task's work is a double: the sum of its losses; where only `losses` is wanted there is none. */
#endif

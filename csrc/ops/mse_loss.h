#ifndef CK_MSE_LOSS_H
#define CK_MSE_LOSS_H
#include "ops/op.h"
/*
 * mse_loss -- squared differences
 *
 *     losses[r,c] = (input[r,c] - target[r,c])^2
 *     loss        = sum_rc losses[r,c] / divisor        divisor: 1 for a sum, the number of elements for a mean
 *
 *     g[r,c]      = dy[r,c], or dloss / divisor
 *     dinput[r,c] = 2 g[r,c] (input[r,c] - target[r,c])
 *
 * The losses are float32, and so is their gradient dy.  In place: dinput may be input, target or dy.  Order: elements
 * in C order whatever the strides, in blocks of CK_LOSS_BLOCK, 4 times 16 lanes in each, block by block in double.
 */
#define CK_ARGS_mse_loss_fwd(_)              \
    _(OPT_OUTV, float,  loss,    "")         \
    _(OPT_OUT,  float,  losses,  "R* C")     \
    _(IN,       elem,   input,   "R* C")     \
    _(IN,       elem,   target,  "R* C")     \
    _(REAL,     double, divisor, "")         \
    _(SIZE,     size_t, R,       "")         \
    _(SIZE,     size_t, C,       "")
CK_DECLARE(mse_loss_fwd)

#define CK_ARGS_mse_loss_bwd(_)              \
    _(OVER,     elem,   dinput,  "R* C")     \
    _(OPT_IN,   float,  dy,      "R* C")     \
    _(REAL,     double, dloss,   "")         \
    _(IN,       elem,   input,   "R* C")     \
    _(IN,       elem,   target,  "R* C")     \
    _(REAL,     double, divisor, "")         \
    _(SIZE,     size_t, R,       "")         \
    _(SIZE,     size_t, C,       "")
CK_DECLARE(mse_loss_bwd)

/* A forward task's work is a double: the sum of its losses; where only `losses` is wanted there is none. */
#endif

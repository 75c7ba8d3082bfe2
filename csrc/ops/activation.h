#ifndef CK_ACTIVATION_H
#define CK_ACTIVATION_H
#include "ops/op.h"
/*
 * activation -- a function of every element by itself
 *
 *     y[r,c]  = f(x[r,c])
 *     dx[r,c] = dy[r,c] * f'(x[r,c])
 *
 *     silu    f = x s(x)      f' = s(x) (1 + x (1 - s(x)))        s(x) = 1 / (1 + e^-x)      (arXiv:1702.03118)
 *
 * Saved for backward: x.  In place: y may be x (and then x is gone), dx may be dy or x.  As in PyTorch the arithmetic
 * puts NaN at silu(-inf), which is -inf * 0.
 *
 * Each function of the family is an op with a name of its own and the same arguments; one that has a parameter adds it.
 * So a message names what the user called, and the function is known when its kernel is compiled.  The functions and
 * their slopes are in simd/activation.h, for this family and for glu.
 */
#define CK_ARGS_activation_fwd(_)           \
    _(OVER, elem,   y,     "R* C")          \
    _(IN,   elem,   x,     "R* C")          \
    _(SIZE, size_t, R,     "")              \
    _(SIZE, size_t, C,     "")
#define CK_ARGS_activation_bwd(_)           \
    _(OVER, elem,   dx,    "R* C")          \
    _(IN,   elem,   dy,    "R* C")          \
    _(IN,   elem,   x,     "R* C")          \
    _(SIZE, size_t, R,     "")              \
    _(SIZE, size_t, C,     "")

#define CK_ARGS_silu_fwd CK_ARGS_activation_fwd
#define CK_ARGS_silu_bwd CK_ARGS_activation_bwd
CK_DECLARE(silu_fwd)
CK_DECLARE(silu_bwd)
#endif

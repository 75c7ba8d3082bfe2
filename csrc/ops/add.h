#ifndef CK_ADD_H
#define CK_ADD_H
#include "ops/op.h"
/*
 * add -- the residual connection
 *
 *     out[r,c] = x[r,c] + alpha * y[r,c]
 *     dx[r,c]  = dout[r,c]
 *     dy[r,c]  = alpha * dout[r,c]
 *
 * Nothing is saved.  In place: out may be x or y; dx or dy may be dout.  Exact but for the one rounding of each result:
 * a fused multiply-add where the instruction set has it.
 */
#define CK_ARGS_add_fwd(_)                  \
    _(OVER, elem,   out,   "R* C")          \
    _(IN,   elem,   x,     "R* C")          \
    _(IN,   elem,   y,     "R* C")          \
    _(REAL, double, alpha, "")              \
    _(SIZE, size_t, R,     "")              \
    _(SIZE, size_t, C,     "")
CK_DECLARE(add_fwd)

#define CK_ARGS_add_bwd(_)                  \
    _(OVER, elem,   dx,    "R* C")          \
    _(OVER, elem,   dy,    "R* C")          \
    _(IN,   elem,   dout,  "R* C")          \
    _(REAL, double, alpha, "")              \
    _(SIZE, size_t, R,     "")              \
    _(SIZE, size_t, C,     "")
CK_DECLARE(add_bwd)
#endif

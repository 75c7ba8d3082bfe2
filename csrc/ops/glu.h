#ifndef CK_GLU_H
#define CK_GLU_H
#include "ops/op.h"
/*
 * glu -- gated units: one half of a projection decides how much of the other passes       (Shazeer 2020, arXiv:2002.05202)
 *
 *     y[r,c]     = f(gate[r,c]) * up[r,c]
 *     dgate[r,c] = dy[r,c] * up[r,c] * f'(gate[r,c])
 *     dup[r,c]   = dy[r,c] * f(gate[r,c])
 *
 *     swiglu, reglu                       f = silu, relu        of ops/activation.h
 *     geglu, geglu_tanh, geglu_sigmoid    f = gelu, gelu_tanh, gelu_sigmoid
 *
 * gate and up may be the halves of one array's rows, and so may dgate and dup.  Saved for backward: gate and up.  In
 * place: y may be gate or up; dgate and dup may be dy, gate or up.  Each unit is an op with a name of its own; its f is
 * known when its kernel is compiled.
 */
#define CK_ARGS_glu_fwd(_)                  \
    _(OVER, elem,   y,     "R* F")          \
    _(IN,   elem,   gate,  "R* F")          \
    _(IN,   elem,   up,    "R* F")          \
    _(SIZE, size_t, R,     "")              \
    _(SIZE, size_t, F,     "")
#define CK_ARGS_glu_bwd(_)                  \
    _(OVER, elem,   dgate, "R* F")          \
    _(OVER, elem,   dup,   "R* F")          \
    _(IN,   elem,   dy,    "R* F")          \
    _(IN,   elem,   gate,  "R* F")          \
    _(IN,   elem,   up,    "R* F")          \
    _(SIZE, size_t, R,     "")              \
    _(SIZE, size_t, F,     "")

#define CK_ARGS_swiglu_fwd CK_ARGS_glu_fwd
#define CK_ARGS_swiglu_bwd CK_ARGS_glu_bwd
CK_DECLARE(swiglu_fwd)
CK_DECLARE(swiglu_bwd)
#define CK_ARGS_geglu_fwd CK_ARGS_glu_fwd
#define CK_ARGS_geglu_bwd CK_ARGS_glu_bwd
CK_DECLARE(geglu_fwd)
CK_DECLARE(geglu_bwd)
#define CK_ARGS_geglu_tanh_fwd CK_ARGS_glu_fwd
#define CK_ARGS_geglu_tanh_bwd CK_ARGS_glu_bwd
CK_DECLARE(geglu_tanh_fwd)
CK_DECLARE(geglu_tanh_bwd)
#define CK_ARGS_geglu_sigmoid_fwd CK_ARGS_glu_fwd
#define CK_ARGS_geglu_sigmoid_bwd CK_ARGS_glu_bwd
CK_DECLARE(geglu_sigmoid_fwd)
CK_DECLARE(geglu_sigmoid_bwd)
#define CK_ARGS_reglu_fwd CK_ARGS_glu_fwd
#define CK_ARGS_reglu_bwd CK_ARGS_glu_bwd
CK_DECLARE(reglu_fwd)
CK_DECLARE(reglu_bwd)
#endif

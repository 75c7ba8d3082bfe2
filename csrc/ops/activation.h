#ifndef CK_ACTIVATION_H
#define CK_ACTIVATION_H
#include "ops/op.h"
/*
 * activation -- a function of every element by itself
 *
 *     y[r,c]  = f(x[r,c])
 *     dx[r,c] = dy[r,c] * f'(x[r,c])
 *
 *     relu           max(x, 0)          1 where x > 0, 0 where x <= 0
 *     silu           x s(x)             s(x) (1 + x s(-x))                  s(x) = 1 / (1 + e^-x)       (arXiv:1702.03118)
 *     gelu           x Phi(x)           Phi(x) + x phi(x)                   Phi(x) = (1 + erf(x / sqrt 2)) / 2,
 *                                                                          phi = Phi'                  (arXiv:1606.08415)
 *     gelu_tanh      x s(w)             s(w) (1 + x w' s(-w))               w = sqrt(8/pi) (x + 0.044715 x^3)
 *     gelu_sigmoid   the same                                              w = 1.702 x
 *     sigmoid        s(x)               s(x) s(-x)
 *     tanh           tanh(x)            1 / cosh(x)^2
 *     softcap        cap tanh(x / cap)  tanh'(x / cap)
 *
 * Saved for backward: x, and not y, which in 16 bits is rounded and knows 1 - y no longer.  In place: y may be x (and then
 * x is gone), dx may be dy or x.  NaN gives NaN, relu's slope there is 1, as PyTorch has it.  The arithmetic puts NaN, as
 * in PyTorch, at silu(-inf) and gelu(-inf), which are -inf * 0, and in their gradients at both infinities.
 *
 * Each function of the family is an op with a name of its own and the same arguments; softcap adds one.  So a message
 * names what the user called, and the function is known when its kernel is compiled.  The functions and their slopes
 * are in simd/activation.h, for this family and for glu.
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

#define CK_ARGS_relu_fwd CK_ARGS_activation_fwd
#define CK_ARGS_relu_bwd CK_ARGS_activation_bwd
CK_DECLARE(relu_fwd)
CK_DECLARE(relu_bwd)
#define CK_ARGS_silu_fwd CK_ARGS_activation_fwd
#define CK_ARGS_silu_bwd CK_ARGS_activation_bwd
CK_DECLARE(silu_fwd)
CK_DECLARE(silu_bwd)
#define CK_ARGS_gelu_fwd CK_ARGS_activation_fwd
#define CK_ARGS_gelu_bwd CK_ARGS_activation_bwd
CK_DECLARE(gelu_fwd)
CK_DECLARE(gelu_bwd)
#define CK_ARGS_gelu_tanh_fwd CK_ARGS_activation_fwd
#define CK_ARGS_gelu_tanh_bwd CK_ARGS_activation_bwd
CK_DECLARE(gelu_tanh_fwd)
CK_DECLARE(gelu_tanh_bwd)
#define CK_ARGS_gelu_sigmoid_fwd CK_ARGS_activation_fwd
#define CK_ARGS_gelu_sigmoid_bwd CK_ARGS_activation_bwd
CK_DECLARE(gelu_sigmoid_fwd)
CK_DECLARE(gelu_sigmoid_bwd)
#define CK_ARGS_sigmoid_fwd CK_ARGS_activation_fwd
#define CK_ARGS_sigmoid_bwd CK_ARGS_activation_bwd
CK_DECLARE(sigmoid_fwd)
CK_DECLARE(sigmoid_bwd)
#define CK_ARGS_tanh_fwd CK_ARGS_activation_fwd
#define CK_ARGS_tanh_bwd CK_ARGS_activation_bwd
CK_DECLARE(tanh_fwd)
CK_DECLARE(tanh_bwd)

#define CK_ARGS_softcap_fwd(_)              \
    _(OVER, elem,   y,     "R* C")          \
    _(IN,   elem,   x,     "R* C")          \
    _(REAL, double, cap,   "")              \
    _(SIZE, size_t, R,     "")              \
    _(SIZE, size_t, C,     "")
#define CK_ARGS_softcap_bwd(_)              \
    _(OVER, elem,   dx,    "R* C")          \
    _(IN,   elem,   dy,    "R* C")          \
    _(IN,   elem,   x,     "R* C")          \
    _(REAL, double, cap,   "")              \
    _(SIZE, size_t, R,     "")              \
    _(SIZE, size_t, C,     "")
CK_DECLARE(softcap_fwd)
CK_DECLARE(softcap_bwd)
#endif

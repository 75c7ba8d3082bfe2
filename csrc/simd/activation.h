#ifndef CK_SIMD_ACTIVATION_H
#define CK_SIMD_ACTIVATION_H
#include "simd/math.h"

/* What a kernel that serves several functions is given: inline it, so that the call is none. */
typedef v16 ck_function(v16 x);

/* x s(x).  From -87 down e^-x leaves the floats, and x e^x is the same to the last bit: one exponential serves both. */
static inline v16
v16_silu(v16 x)
{
    const v16_mask far = v16_lt(x, v16_splat(-87.0f));
    const v16 e = v16_exp(v16_select(far, x, v16_neg(x)));
    return v16_select(far, v16_mul(x, e), v16_div(x, v16_add(v16_splat(1.0f), e)));
}

/* s (1 + x (1 - s)): 1 - s = s(-x) by a quotient of its own, not by a subtraction that would cancel. */
static inline v16
v16_silu_slope(v16 x)
{
    const v16 one = v16_splat(1.0f), e = v16_exp(v16_neg(v16_abs(x))), sum = v16_add(one, e);
    const v16_mask negative = v16_lt(x, v16_zero());
    const v16 s = v16_div(v16_select(negative, e, one), sum), rest = v16_div(v16_select(negative, one, e), sum);
    return v16_mul(s, v16_fma(x, rest, one));
}
#endif

#ifndef CK_SIMD_ACTIVATION_H
#define CK_SIMD_ACTIVATION_H
#include "simd/math.h"

/* What a kernel that serves several functions is given: inline it, so that the call is none. */
typedef v16 ck_function(v16 x);

/*
 * x s(x), s(x) = 1 / (1 + e^-x): max(x, 0) - |x| s(-|x|), which is one product for x < 0, and for x > 0 cancels at most
 * half of x.  |x| is held where it would be infinity times 0, but for x = -inf, which gives NaN.
 */
static inline v16
v16_silu(v16 x)
{
    const v16 a = v16_max(v16_min(v16_splat(128.0f), x), v16_neg(x)), part = v16_mul(a, ck_sigmoid_part(a));
    return v16_fma(part, v16_splat(0x1p-32f), v16_max(v16_splat(-0.0f), x)); /* max: -0 where x is negative */
}

/* s (1 + x (1 - s)): the lesser of s and 1 - s is a quotient of its own, the other is what it leaves of 1. */
static inline v16
v16_silu_slope(v16 x)
{
    const v16 one = v16_splat(1.0f), part = ck_sigmoid_part(v16_abs(x));
    const v16 small = v16_mul(part, v16_splat(-0x1p-32f)), large = v16_fma(part, v16_splat(0x1p-32f), one);
    const v16_mask negative = v16_lt(x, v16_zero());
    const v16 s = v16_select(negative, small, large), rest = v16_select(negative, large, small);
    return v16_mul(s, v16_fma(x, rest, one));
}
#endif

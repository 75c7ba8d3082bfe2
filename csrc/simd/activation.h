#ifndef CK_SIMD_ACTIVATION_H
#define CK_SIMD_ACTIVATION_H
/*
 * The functions of ops/activation.h on sixteen numbers, and their slopes.  Each v16_<f>_both(x, &slope) shares what the
 * two have in common; its result may differ from v16_<f>(x) by a rounding.
 *
 * A function x s(x), with s from 0 to 1 and s(-x) = 1 - s(x), is computed as
 *
 *     max(x, 0) - |x| s(-|x|)
 *
 * whose last term is a product without cancellation where x < 0, and for x > 0 so small that its errors hardly show.
 * Where s is one to the last place, or has underflowed to 0, x is held in the term: `hold`, above, and `z`, both sides.
 * -inf is not held, so that it meets that 0 and gives NaN, as it does in PyTorch.
 */
#include "simd/math.h"

/* NaN where x is NaN or infinite, else y. */
static inline v16
ck_unless_infinite(v16 x, v16 y)
{
    return v16_fma(x, v16_zero(), y);
}

/*
 * 1 / (1 + e^-z) = u / (u + v), e^z being u / v: u = 2^32 2^n, v = 2^32 e^-(z - n ln2), for z of -110.3..65.  At the lower
 * end u is 0.  The factor keeps u a normal number where the quotient is none.
 */
static inline v16
ck_logistic(v16 z, v16 *v)
{
    const v16 shift = v16_splat(CK_SHIFT + 32.0f);
    const v16 shifted = v16_fma(z, v16_splat(1.44269504f), shift), r = ck_exp_rest(z, v16_sub(shifted, shift));

    v16 p = v16_splat(0x1p32f * 0.00138214475f); /* ck_exp_tail(-r), 2^32 times */
    p = v16_fma(p, r, v16_splat(0x1p32f * -0.00836866163f));
    p = v16_fma(p, r, v16_splat(0x1p32f * 0.0416682549f));
    p = v16_fma(p, r, v16_splat(0x1p32f * -0.166665211f));
    p = v16_fma(p, r, v16_splat(0x1p32f * 0.49999994f));
    p = v16_fma(p, r, v16_splat(-0x1p32f));
    *v = v16_fma(p, r, v16_splat(0x1p32f));
    return v16_pow2_shifted(shifted);
}

/* x / (1 + e^-w) for w of the sign of x. */
static inline v16
ck_gated(v16 x, v16 hold, v16 w)
{
    v16 v;
    const v16 u = ck_logistic(w, &v);
    const v16 part = v16_div(v16_mul(v16_abs(hold), v16_min(u, v)), v16_add(u, v));
    return v16_sub(v16_max(v16_splat(-0.0f), x), part); /* -0 where x is negative and the product 0 */
}

/* The same, and its slope where w has the slope dw: s (1 + z dw (1 - s)), with z for x, as 1 - s is not 0 where w is held. */
static inline v16
ck_gated_both(v16 x, v16 hold, v16 z, v16 w, v16 dw, v16 *slope)
{
    v16 v;
    const v16 u = ck_logistic(w, &v), one = v16_splat(1.0f), q = v16_div(one, v16_add(u, v));
    *slope = v16_mul(v16_mul(u, q), v16_fma(v16_mul(z, dw), v16_mul(v, q), ck_unless_infinite(x, one)));
    return v16_sub(v16_max(v16_splat(-0.0f), x), v16_mul(v16_abs(hold), v16_mul(v16_min(u, v), q)));
}

/* x / (1 + e^-x) */
static inline v16
v16_silu(v16 x)
{
    const v16 hold = v16_min(v16_splat(25.0f), x);
    return ck_gated(x, hold, v16_max(v16_splat(-110.3f), hold));
}

static inline v16
v16_silu_both(v16 x, v16 *slope)
{
    const v16 hold = v16_min(v16_splat(25.0f), x), z = v16_max(v16_splat(-110.3f), hold);
    return ck_gated_both(x, hold, z, z, v16_splat(1.0f), slope);
}

/* x / (1 + e^-1.702x) */
static inline v16
v16_gelu_sigmoid(v16 x)
{
    const v16 hold = v16_min(v16_splat(15.0f), x), z = v16_max(v16_splat(-64.8f), hold);
    return ck_gated(x, hold, v16_mul(z, v16_splat(1.702f)));
}

static inline v16
v16_gelu_sigmoid_both(v16 x, v16 *slope)
{
    const v16 hold = v16_min(v16_splat(15.0f), x), z = v16_max(v16_splat(-64.8f), hold), k = v16_splat(1.702f);
    return ck_gated_both(x, hold, z, v16_mul(z, k), k, slope);
}

/* x (1 + tanh(w/2)) / 2 = x / (1 + e^-w), w = sqrt(8/pi) (x + 0.044715 x^3) */
static inline v16
v16_gelu_tanh(v16 x)
{
    const v16 hold = v16_min(v16_splat(6.2f), x), z = v16_max(v16_splat(-10.92f), hold);
    const v16 w = v16_mul(z, v16_fma(v16_mul(z, z), v16_splat(0.0713548163f), v16_splat(1.59576912f)));
    return ck_gated(x, hold, w);
}

static inline v16
v16_gelu_tanh_both(v16 x, v16 *slope)
{
    const v16 hold = v16_min(v16_splat(6.2f), x), z = v16_max(v16_splat(-10.92f), hold), square = v16_mul(z, z);
    const v16 w = v16_mul(z, v16_fma(square, v16_splat(0.0713548163f), v16_splat(1.59576912f)));
    const v16 dw = v16_fma(square, v16_splat(3 * 0.0713548163f), v16_splat(1.59576912f));
    return ck_gated_both(x, hold, z, w, dw, slope);
}

/*
 * 2^32 e^(-z^2/2) for |z| <= 14.85, where it is 0.  The square of z rounded to 8 places behind the point is exact, and what
 * the rounding left out goes to the small terms: rounding z^2 itself would cost up to 100 ulp.
 */
static inline v16
ck_normal(v16 z)
{
    const v16 places = v16_splat(49152.0f), shift = v16_splat(CK_SHIFT + 32.0f);
    const v16 head = v16_sub(v16_add(z, places), places), rest = v16_sub(head, z);
    const v16 m = v16_mul(v16_mul(head, v16_splat(-0.5f)), head);
    const v16 shifted = v16_fma(m, v16_splat(1.44269504f), shift);
    v16 r = ck_exp_rest(m, v16_sub(shifted, shift));
    r = v16_fma(rest, v16_fma(rest, v16_splat(0.5f), z), r); /* (head^2 - z^2) / 2 */

    const v16 one = v16_splat(1.0f), p = v16_fma(v16_fma(ck_exp_tail(r), r, one), r, one);
    return v16_mul(p, v16_pow2_shifted(shifted));
}

/*
 * The normal distribution's tail over its density: 1 - Phi(a) is e^(-a^2/2) p / q for a of 0..14.85, to 0.4 ulp, by a rational
 * minimax fit.  All terms are positive: nothing cancels.  q is 2^32 times as large, for ck_normal.
 */
static inline v16
ck_tail_ratio(v16 a, v16 *q)
{
    v16 d = v16_splat(0x1p32f * 0.0102550965f);
    d = v16_fma(d, a, v16_splat(0x1p32f * 0.101489089f));
    d = v16_fma(d, a, v16_splat(0x1p32f * 0.468389183f));
    d = v16_fma(d, a, v16_splat(0x1p32f * 1.20089591f));
    d = v16_fma(d, a, v16_splat(0x1p32f * 1.67347693f));
    *q = v16_fma(d, a, v16_splat(0x1p32f));

    v16 p = v16_splat(0.00409123953f);
    p = v16_fma(p, a, v16_splat(0.0404857062f));
    p = v16_fma(p, a, v16_splat(0.182829127f));
    p = v16_fma(p, a, v16_splat(0.437796056f));
    return v16_fma(p, a, v16_splat(0.5f));
}

/* x Phi(x) = x (1 + erf(x / sqrt 2)) / 2, right in each value's own places down to where it is 0. */
static inline v16
v16_gelu(v16 x)
{
    const v16 hold = v16_min(v16_splat(6.0f), x), z = v16_max(v16_splat(-14.85f), hold);
    v16 q;
    const v16 p = ck_tail_ratio(v16_abs(z), &q), part = v16_div(v16_mul(v16_abs(hold), v16_mul(ck_normal(z), p)), q);
    return v16_sub(v16_max(v16_splat(-0.0f), x), part);
}

/* The slope is Phi(x) + x phi(x), phi(x) = e^(-x^2/2) / sqrt(2 pi). */
static inline v16
v16_gelu_both(v16 x, v16 *slope)
{
    const v16 hold = v16_min(v16_splat(6.0f), x), z = v16_max(v16_splat(-14.85f), hold), a = v16_abs(z);
    v16 q;
    const v16 p = ck_tail_ratio(a, &q), ratio = v16_div(p, q), normal = ck_normal(z);
    const v16 below = v16_mul(normal, v16_fma(a, v16_splat(-0x1p-32f * 0.398942280f), ratio)); /* the slope at -a */
    const v16 mirrored = v16_select(v16_lt(z, v16_zero()), below, v16_sub(v16_splat(1.0f), below));
    *slope = ck_unless_infinite(x, mirrored);
    return v16_sub(v16_max(v16_splat(-0.0f), x), v16_mul(v16_abs(hold), v16_mul(normal, ratio)));
}

#define CK_SLOPE(name) static inline v16 v16_##name##_slope(v16 x) { v16 slope; v16_##name##_both(x, &slope); return slope; }
CK_SLOPE(silu)
CK_SLOPE(gelu)
CK_SLOPE(gelu_tanh)
CK_SLOPE(gelu_sigmoid)

/* NaN stays NaN. */
static inline v16 v16_relu(v16 x) { return v16_max(v16_zero(), x); }

/* dy where x is positive or NaN, whatever dy is elsewhere. */
static inline v16 v16_relu_back(v16 dy, v16 x) { return v16_select(v16_le(x, v16_zero()), v16_zero(), dy); }

/* `times` s(x) (1 - s(x)), s(x) = 1 / (1 + e^-x): of -|x|, as it is even. */
static inline v16
ck_logistic_slope(v16 x, float times)
{
    v16 v;
    const v16 u = ck_logistic(v16_max(v16_splat(-110.3f), v16_neg(v16_abs(x))), &v);
    const v16 q = v16_div(v16_splat(1.0f), v16_add(u, v));
    return v16_mul(v16_mul(v16_splat(times), v16_mul(u, q)), v16_mul(v, q));
}

static inline v16 v16_sigmoid_slope(v16 x) { return ck_logistic_slope(x, 1.0f); }
static inline v16 v16_tanh_slope(v16 x) { return ck_logistic_slope(v16_add(x, x), 4.0f); }

/* cap tanh(x / cap), and its slope */
static inline v16 v16_softcap(v16 x, v16 cap) { return v16_mul(cap, v16_tanh(v16_div(x, cap))); }
static inline v16 v16_softcap_slope(v16 x, v16 cap) { return v16_tanh_slope(v16_div(x, cap)); }
#endif

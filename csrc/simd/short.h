#ifndef CK_SIMD_SHORT_H
#define CK_SIMD_SHORT_H
/*
 * The functions of simd/activation.h, and of simd/math.h what goes with them, for results that are rounded to 16 bits
 * next: v16_<f>_short in about half the steps.  v16_<f>_elem is the one of the two that the dtype of the call asks for.
 * The bounds are in simd/math.h.
 *
 * A function x / (1 + e^-w) is computed as it stands: e^-w is inf where w is below -88.8, and 1 / (1 + e^-w), no larger
 * than 2^-128 there, 0.  It is -inf / inf at -inf, NaN, as it is in PyTorch.
 */
#include "simd/activation.h"

#define CK_LOG2_E 1.44269504f

/* 1 / (1 + e^-w); w is times * z. */
static inline v16
ck_logistic_short(v16 z, float times)
{
    const v16 one = v16_splat(1.0f);
    return v16_div(one, v16_add(one, ck_exp2_short(v16_mul(z, v16_splat(-CK_LOG2_E * times)))));
}

static inline v16
ck_gated_short(v16 x, v16 w, float times)
{
    return v16_div(x, v16_add(v16_splat(1.0f), ck_exp2_short(v16_mul(w, v16_splat(-CK_LOG2_E * times)))));
}

/* Given s = 1 / (1 + e^-w): x s, and its slope where w has the slope dw, which is finite: x s (1 - s) is small for all x. */
static inline v16
ck_gated_both_short(v16 x, v16 dw, v16 s, v16 *slope)
{
    const v16 y = v16_mul(x, s);
    *slope = v16_fma(v16_mul(y, v16_sub(v16_splat(1.0f), s)), dw, s);
    return y;
}

static inline v16 v16_sigmoid_short(v16 x) { return ck_logistic_short(x, 1.0f); }
static inline v16 v16_silu_short(v16 x) { return ck_gated_short(x, x, 1.0f); }
static inline v16 v16_gelu_sigmoid_short(v16 x) { return ck_gated_short(x, x, 1.702f); }

static inline v16
v16_silu_short_both(v16 x, v16 *slope)
{
    return ck_gated_both_short(x, v16_splat(1.0f), ck_logistic_short(x, 1.0f), slope);
}

static inline v16
v16_gelu_sigmoid_short_both(v16 x, v16 *slope)
{
    return ck_gated_both_short(x, v16_splat(1.702f), ck_logistic_short(x, 1.702f), slope);
}

/* w of v16_gelu_tanh is sqrt(8/pi) times this: infinite, not NaN, for large x. */
static inline v16
ck_cubic_short(v16 x)
{
    return v16_mul(x, v16_fma(v16_mul(x, x), v16_splat(0.044715f), v16_splat(1.0f)));
}

static inline v16 v16_gelu_tanh_short(v16 x) { return ck_gated_short(x, ck_cubic_short(x), 1.59576912f); }

static inline v16
v16_gelu_tanh_short_both(v16 x, v16 *slope)
{
    const v16 square = v16_min(v16_splat(400.0f), v16_mul(x, x)); /* from there on s is 0 or 1 */
    const v16 dw = v16_fma(square, v16_splat(3 * 0.0713548163f), v16_splat(1.59576912f));
    return ck_gated_both_short(x, dw, ck_logistic_short(ck_cubic_short(x), 1.59576912f), slope);
}

/* As ck_tail_ratio, to 2^-21. */
static inline v16
ck_tail_ratio_short(v16 a, v16 *q)
{
    v16 d = v16_splat(0.0432826132f);
    d = v16_fma(d, a, v16_splat(0.301728517f));
    d = v16_fma(d, a, v16_splat(0.957819343f));
    d = v16_fma(d, a, v16_splat(1.52498734f));
    *q = v16_fma(d, a, v16_splat(1.0f));

    v16 p = v16_splat(0.0172654633f);
    p = v16_fma(p, a, v16_splat(0.120447606f));
    p = v16_fma(p, a, v16_splat(0.363561600f));
    return v16_fma(p, a, v16_splat(0.499999791f));
}

/* e^(-z^2/2), z rounded by what 16 bits do not show */
static inline v16
ck_normal_short(v16 z)
{
    return ck_exp2_short(v16_mul(v16_mul(z, z), v16_splat(-0.5f * CK_LOG2_E)));
}

static inline v16
v16_gelu_short(v16 x)
{
    const v16 hold = v16_min(v16_splat(6.0f), x), z = v16_max(v16_splat(-14.85f), hold);
    v16 q;
    const v16 p = ck_tail_ratio_short(v16_abs(z), &q);
    const v16 part = v16_div(v16_mul(v16_abs(hold), v16_mul(ck_normal_short(z), p)), q);
    return v16_sub(v16_max(v16_splat(-0.0f), x), part);
}

static inline v16
v16_gelu_short_both(v16 x, v16 *slope)
{
    const v16 hold = v16_min(v16_splat(6.0f), x), z = v16_max(v16_splat(-14.85f), hold), a = v16_abs(z);
    v16 q;
    const v16 p = ck_tail_ratio_short(a, &q), ratio = v16_div(p, q), normal = ck_normal_short(z);
    const v16 below = v16_mul(normal, v16_fma(a, v16_splat(-0.398942280f), ratio)); /* the slope at -a */
    const v16 mirrored = v16_select(v16_lt(z, v16_zero()), below, v16_sub(v16_splat(1.0f), below));
    *slope = ck_unless_infinite(x, mirrored);
    return v16_sub(v16_max(v16_splat(-0.0f), x), v16_mul(v16_abs(hold), v16_mul(normal, ratio)));
}

/* s(x) (1 - s(x)), s(x) = 1 / (1 + e^-x), where `times` is 1, and 1 / cosh(x)^2 where it is 2: of -|x|, being even. */
static inline v16
ck_logistic_slope_short(v16 x, float times)
{
    const v16 part = v16_splat(1 / times), e = ck_exp2_short(v16_mul(v16_abs(x), v16_splat(-CK_LOG2_E * times)));
    const v16 d = v16_fma(e, part, part);
    return v16_div(e, v16_mul(d, d));
}

static inline v16 v16_sigmoid_slope_short(v16 x) { return ck_logistic_slope_short(x, 1.0f); }
static inline v16 v16_tanh_slope_short(v16 x) { return ck_logistic_slope_short(x, 2.0f); }

/* A ratio of polynomials, to 2^-20 of tanh(x) up to 6.4, where 1 is within 2^-17; tanh(-0) = -0. */
static inline v16
v16_tanh_short(v16 x)
{
    const v16 z = v16_max(v16_splat(-6.4f), v16_min(v16_splat(6.4f), x)), u = v16_mul(z, z);
    v16 p = v16_splat(4.45031675e-06f);
    p = v16_fma(p, u, v16_splat(0.00238234131f));
    p = v16_fma(p, u, v16_splat(0.124182604f));
    p = v16_fma(p, u, v16_splat(0.999999583f));

    v16 q = v16_splat(0.000154014808f);
    q = v16_fma(q, u, v16_splat(0.0215577334f));
    q = v16_fma(q, u, v16_splat(0.457512677f));
    q = v16_fma(q, u, v16_splat(1.0f));
    return v16_div(v16_mul(z, p), q);
}

#define CK_SLOPE_SHORT(f) \
    static inline v16 v16_##f##_slope_short(v16 x) { v16 slope; v16_##f##_short_both(x, &slope); return slope; }
CK_SLOPE_SHORT(silu)
CK_SLOPE_SHORT(gelu)
CK_SLOPE_SHORT(gelu_tanh)
CK_SLOPE_SHORT(gelu_sigmoid)

#define CK_OF_ELEM(f) static inline v16 v16_##f##_elem(v16 x) { return CK_IS_FLOAT ? v16_##f(x) : v16_##f##_short(x); }
CK_OF_ELEM(silu)
CK_OF_ELEM(gelu)
CK_OF_ELEM(gelu_tanh)
CK_OF_ELEM(gelu_sigmoid)
CK_OF_ELEM(sigmoid)
CK_OF_ELEM(tanh)
CK_OF_ELEM(silu_slope)
CK_OF_ELEM(gelu_slope)
CK_OF_ELEM(gelu_tanh_slope)
CK_OF_ELEM(gelu_sigmoid_slope)
CK_OF_ELEM(sigmoid_slope)
CK_OF_ELEM(tanh_slope)

#define CK_BOTH_OF_ELEM(f)                                                              \
    static inline v16 v16_##f##_elem_both(v16 x, v16 *slope)                            \
    {                                                                                   \
        return CK_IS_FLOAT ? v16_##f##_both(x, slope) : v16_##f##_short_both(x, slope); \
    }
CK_BOTH_OF_ELEM(silu)
CK_BOTH_OF_ELEM(gelu)
CK_BOTH_OF_ELEM(gelu_tanh)
CK_BOTH_OF_ELEM(gelu_sigmoid)

/* cap tanh(x / cap), and its slope */
static inline v16 v16_softcap_elem(v16 x, v16 cap) { return v16_mul(cap, v16_tanh_elem(v16_div(x, cap))); }
static inline v16 v16_softcap_slope_elem(v16 x, v16 cap) { return v16_tanh_slope_elem(v16_div(x, cap)); }
#endif

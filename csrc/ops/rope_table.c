#include "faults.h"
#include "ops/ops.h"
#include "runtime/run.h"

#include <math.h>

static const double PI = 3.14159265358979323846;

/* ---- what a rule refuses; a name is that of the Hugging Face field ---- */

static ck_status
refuse_below(const char *name, double value, double least)
{
    if (value >= least && value < INFINITY)
        return CK_OK;
    return ck_refuse(CK_BAD_VALUE, "'%s' must be finite and at least %g, not %g", name, least, value);
}

static ck_status
refuse_order(const char *low, const char *high, const struct ck_rope_table *a, bool may_equal)
{
    if (!(a->low > 0 && a->low < INFINITY))
        return ck_refuse(CK_BAD_VALUE, "'%s' must be positive and finite, not %g", low, a->low);
    if (!(may_equal ? a->high >= a->low : a->high > a->low) || isinf(a->high))
        return ck_refuse(CK_BAD_VALUE, "'%s' must be finite and %s '%s'=%g, not %g", high,
                         may_equal ? "at least" : "above", low, a->low, a->high);
    return CK_OK;
}

static ck_status
refuse_factors(const char *name, const double *factor, size_t K)
{
    if (factor == NULL)
        return ck_refuse(CK_BAD_VALUE, "'%s' is missing", name);
    for (size_t k = 0; k < K; k++)
        if (!(factor[k] > 0 && factor[k] < INFINITY))
            return ck_refuse(CK_BAD_VALUE, "'%s' must be positive and finite, and holds %g at %zu", name, factor[k], k);
    return CK_OK;
}

static ck_status
refuse_rule(const struct ck_rope_table *a)
{
    ck_status status = CK_OK;

    if (a->rule < 0 || a->rule >= CK_ROPE_RULES)
        return ck_refuse(CK_BAD_VALUE, "'rule' must be 0 to %d, not %lld", CK_ROPE_RULES - 1, (long long)a->rule);
    if (!(a->base > 0) || isinf(a->base))
        return ck_refuse(CK_BAD_VALUE, "'base' must be positive and finite, not %g", a->base);
    if (a->rule != CK_ROPE_DEFAULT)
        status = refuse_below("factor", a->factor, 1);
    if (status == CK_OK && a->rule >= CK_ROPE_DYNAMIC)
        status = refuse_below("original_max_position_embeddings", a->original, 1);
    if (status != CK_OK)
        return status;
    if (!(a->attention > 0) || isinf(a->attention))
        return ck_refuse(CK_BAD_VALUE, "'attention_factor' must be positive and finite, not %g", a->attention);
    if (a->rule == CK_ROPE_YARN)
        return a->base > 1 ? refuse_order("beta_slow", "beta_fast", a, true)
                           : ck_refuse(CK_BAD_VALUE, "'base' must be above 1 for yarn, not %g", a->base);
    if (a->rule == CK_ROPE_LLAMA3)
        return refuse_order("low_freq_factor", "high_freq_factor", a, false);
    if (a->rule == CK_ROPE_LONGROPE) {
        status = refuse_factors("short_factor", a->short_factor, a->K);
        return status != CK_OK ? status : refuse_factors("long_factor", a->long_factor, a->K);
    }
    return CK_OK;
}

/* ---- the rules ---- */

/* Tokens that the table is for: as given, or as far as the positions reach. */
static double
length_of(const struct ck_rope_table *a)
{
    int64_t last = -1;
    if (a->length > 0)
        return (double)a->length;
    for (size_t t = 0; t < a->T; t++) {
        const int64_t position = ck_id(&a->positions, t);
        last = position > last ? position : last;
    }
    return (double)last + 1;
}

static double
stretched_base(const struct ck_rope_table *a)
{
    const double dim = 2 * (double)a->K;
    double by = 1;

    if (a->rule == CK_ROPE_NTK)
        by = a->factor;
    else if (a->rule == CK_ROPE_DYNAMIC) {
        const double n = length_of(a);
        by = a->factor * (n > a->original ? n : a->original) / a->original - (a->factor - 1);
    }
    return by == 1 || a->K < 2 ? a->base : a->base * pow(by, dim / (dim - 2)); /* a single pair has frequency 1 anyway */
}

static double
yarn(const struct ck_rope_table *a, size_t k, double f)
{
    const double dim = 2 * (double)a->K, scale = dim / (2 * log(a->base));
    double lo = scale * log(a->original / (a->high * 2 * PI)), hi = scale * log(a->original / (a->low * 2 * PI));

    if (a->truncate) {
        lo = floor(lo);
        hi = ceil(hi);
    }
    lo = fmax(lo, 0);
    hi = fmin(hi, dim - 1);
    if (lo == hi)
        hi += 0.001;
    const double r = fmin(fmax(((double)k - lo) / (hi - lo), 0), 1);
    return f / a->factor * r + f * (1 - r);
}

static double
llama3(const struct ck_rope_table *a, double f)
{
    const double turns = a->original * f / (2 * PI); /* within the original length: L / w */

    if (turns > a->high)
        return f;
    if (turns < a->low)
        return f / a->factor;
    const double u = (turns - a->low) / (a->high - a->low);
    return f / a->factor * (1 - u) + f * u;
}

static void
fill(const struct ck_rope_table *a, double *frequency)
{
    const double base = CK_FAULT(rope_base) ? 1.01 * stretched_base(a) : stretched_base(a);
    const double *stretch = a->rule != CK_ROPE_LONGROPE ? NULL
                          : (length_of(a) > a->original) != CK_FAULT(rope_long_factors) ? a->long_factor : a->short_factor;

    for (size_t k = 0; k < a->K; k++) {
        const double f = pow(base, -(double)k / (double)(a->K + CK_FAULT(rope_width)));
        frequency[k] = CK_FAULT(rope_scaling_ignored) ? f
                     : a->rule == CK_ROPE_LINEAR ? f / a->factor
                     : a->rule == CK_ROPE_YARN   ? yarn(a, k, f)
                     : a->rule == CK_ROPE_LLAMA3 ? llama3(a, f)
                     : stretch != NULL           ? f / stretch[k] : f;
    }
}

CK_RUN(rope_table)
{
    ck_status status = refuse_rule(a);
    if (status != CK_OK)
        return status;
    double *frequency = ck_take(a->K * sizeof *frequency);
    if (frequency == NULL)
        return CK_NO_MEMORY;
    fill(a, frequency);
    status = ck_rope_angles(k, &(struct ck_rope_angles){.cos = a->cos, .sin = a->sin, .positions = a->positions,
                                                        .frequency = frequency, .attention = a->attention,
                                                        .T = a->T, .K = a->K});
    ck_give(frequency, a->K * sizeof *frequency);
    return status;
}

CK_RUN(rope_angles)
{
    return ck_tasks(a->T, ck_grain(64 * a->K), CK_FAST(rope_angles), a); /* a cosine and a sine cost some 64 copies */
}

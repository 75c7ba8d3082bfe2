#include "kernels/kernel.h"
#include "ops/cross_entropy.h"
#include "simd/math.h"
#include "simd/words.h"

#include <math.h>

enum { BLOCK = CK_CROSS_ENTROPY_BLOCK };

/* tanh(logits / softcap) in `slope`, and softcap times that; the logits themselves where there is no cap. */
static inline v16
capped(v16 logits, float softcap, v16 *slope)
{
    if (isinf(softcap)) {
        *slope = v16_zero();
        return logits;
    }
    *slope = v16_tanh(v16_div(logits, v16_splat(softcap)));
    return v16_mul(*slope, v16_splat(softcap));
}

/* Elements v to v+n-1 of a row, -inf behind them. */
static inline v16
scores(const elem *logits, size_t n, float softcap)
{
    v16 slope;
    const v16 x = capped(v16_load(logits, n), softcap, &slope);
    return n >= 16 ? x : v16_select(v16_first(n), x, v16_splat(-INFINITY));
}

static inline float
score(const elem *logits, float softcap)
{
    return v16_peak(scores(logits, 1, softcap)); /* a NaN gets lost, but not in the sum */
}

/*
 * One row, read once: a block goes through the first-level cache twice, for its maximum and for its exponentials.
 * The sum so far is rescaled when the maximum moves.
 */
typedef struct { float peak; double sum, all; } row_sums;

static inline row_sums
sum_row(const elem *logits, size_t V, float softcap, bool smooth)
{
    row_sums row = {-INFINITY, 0, 0};

    for (size_t begin = 0; begin < V; begin += BLOCK) {
        const size_t end = V - begin < BLOCK ? V : begin + BLOCK;
        v16 peaks = v16_splat(-INFINITY), sums = v16_zero(), alls = v16_zero();

        for (size_t v = begin; v < end; v += 16)
            peaks = v16_max(peaks, scores(logits + v, end - v, softcap));
        const float peak = v16_peak(peaks);
        if (peak > row.peak) {
            row.sum *= exp((double)row.peak - peak);
            row.peak = peak;
        }
        const v16 base = v16_splat(row.peak == -INFINITY ? 0.0f : row.peak); /* -inf from itself would be NaN */
        for (size_t v = begin; v < end; v += 16)
            sums = v16_add(sums, v16_exp(v16_sub(scores(logits + v, end - v, softcap), base)));
        row.sum += v16_sum(sums);
        if (!smooth)
            continue;
        for (size_t v = begin; v < end; v += 16) {
            v16 slope;
            alls = v16_add(alls, capped(v16_load(logits + v, end - v), softcap, &slope)); /* 0 behind the end */
        }
        row.all += v16_sum(alls);
    }
    return row;
}

CK_KERNEL(cross_entropy_fwd)
{
    const size_t V = a->V;
    const float softcap = (float)a->softcap;
    const double s = a->label_smoothing;
    double *total = task.work;

    *total = 0;
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *logits = ck_row(&a->logits, r); /* [r,:] */
        const int64_t t = ck_id(&a->target, r);
        row_sums row = {-INFINITY, 0, 0};
        double loss = 0;

        if (t != a->ignore_index) {
            row = isinf(softcap) ? sum_row(logits, V, INFINITY, s > 0) : sum_row(logits, V, softcap, s > 0);
            const double lse = row.peak + log(row.sum);
            loss = lse - (1 - s) * score(logits + t, softcap) + a->z_loss * lse * lse;
            if (s > 0)
                loss -= s / (double)V * row.all;
        }
        if (a->losses != NULL)
            a->losses[r] = (float)loss;
        if (a->peak != NULL)
            a->peak[r] = row.peak;
        if (a->sum != NULL)
            a->sum[r] = (float)row.sum;
        *total += loss;
    }
}

/* dlogits[v] = (scale exp(x[v] - peak) - smooth) (1 - slope^2), all v alike */
static inline void
spread_row(elem *dlogits, const elem *logits, size_t V, float softcap, float peak, float scale, float smooth)
{
    for (size_t v = 0; v < V; v += 16) {
        v16 slope;
        const v16 x = capped(v16_load(logits + v, V - v), softcap, &slope);
        v16 dx = v16_fma(v16_exp(v16_sub(x, v16_splat(peak))), v16_splat(scale), v16_splat(-smooth));
        if (!isinf(softcap))
            dx = v16_mul(dx, v16_fma(v16_mul(slope, v16_splat(-1.0f)), slope, v16_splat(1.0f)));
        v16_store(dlogits + v, dx, V - v);
    }
}

/* The gradient at the target, from doubles: its terms cancel. */
static inline v16
at_target(const elem *logit, float softcap, float peak, double scale, double smooth, double g)
{
    v16 slopes;
    const v16 x = capped(v16_load(logit, 1), softcap, &slopes);
    const double e = v16_sum(v16_select(v16_first(1), v16_exp(v16_sub(x, v16_splat(peak))), v16_zero()));
    const double slope = v16_sum(v16_select(v16_first(1), slopes, v16_zero()));
    return v16_splat((float)((scale * e - smooth - g) * (1 - slope * slope)));
}

CK_KERNEL(cross_entropy_bwd)
{
    const size_t V = a->V;
    const float softcap = (float)a->softcap;
    const double share = *(const double *)task.work, s = a->label_smoothing;

    for (size_t r = task.begin; r < task.end; r++) {
        const elem *logits = ck_row(&a->logits, r); /* [r,:] */
        elem *dlogits = ck_row(&a->dlogits, r);
        const int64_t t = ck_id(&a->target, r);

        if (t == a->ignore_index) {
            for (size_t v = 0; v < V; v += 16)
                v16_store(dlogits + v, v16_zero(), V - v);
            continue;
        }
        const float peak = a->peak[r];
        const double g = a->dy.data != NULL ? *(const float *)ck_row(&a->dy, r) : a->dloss * share;
        const double sum = a->sum[r], lse = peak + log(sum);
        const double scale = g * (1 + 2 * a->z_loss * lse) / sum, smooth = g * s / (double)V;
        const v16 target = at_target(logits + t, softcap, peak, scale, smooth, g * (1 - s)); /* before it is overwritten */

        if (isinf(softcap))
            spread_row(dlogits, logits, V, INFINITY, peak, (float)scale, (float)smooth);
        else
            spread_row(dlogits, logits, V, softcap, peak, (float)scale, (float)smooth);
        v16_store(dlogits + t, target, 1);
    }
}

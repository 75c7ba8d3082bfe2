#ifndef CK_CROSS_ENTROPY_ROW_H
#define CK_CROSS_ENTROPY_ROW_H
/* One row of logits, or a part of one: what cross_entropy and linear_cross_entropy do with it. */
#include "kernels/rows.h"
#include "ops/pieces.h"

#include <math.h>

/* tanh(logits / softcap) in `slope`, and softcap times that; the logits themselves where there is no cap. */
CK_TEMPLATE v16
capped(v16 logits, float softcap, v16 *slope)
{
    if (isinf(softcap)) {
        *slope = v16_zero();
        return logits;
    }
    *slope = v16_tanh(v16_div(logits, v16_splat(softcap)));
    return v16_mul(*slope, v16_splat(softcap));
}

/* The first lane. */
static inline float
first(v16 x)
{
    float lanes[16];
    v16_store_f32(lanes, x, 16);
    return lanes[0];
}

static inline float
score(v16 logit, float softcap)
{
    v16 slope;
    return first(capped(logit, softcap, &slope));
}

/* ---- forward ---- */

/* Of a block of n, lane by lane: the sum of exp(x - base), and where `smooth` that of x.  Fetches what follows the block. */
CK_TEMPLATE v16
block_lanes(const elem *logits, size_t n, float softcap, bool smooth, v16 base, v16 *all)
{
    v16 sums = v16_zero(), alls = v16_zero(), slope;
    size_t v = 0;
    for (; v + 16 <= n; v += 16) {
        ck_prefetch(logits + v + CK_ROW_BLOCK);
        const v16 x = capped(v16_load(logits + v, 16), softcap, &slope);
        sums = v16_add(sums, v16_exp_below(v16_sub(x, base)));
        if (smooth)
            alls = v16_add(alls, x);
    }
    if (v < n) {
        const v16 x = capped(v16_load(logits + v, n - v), softcap, &slope); /* 0 behind the end */
        sums = v16_add(sums, v16_select(v16_first(n - v), v16_exp_below(v16_sub(x, base)), v16_zero()));
        if (smooth)
            alls = v16_add(alls, x);
    }
    *all = alls;
    return sums;
}

CK_TEMPLATE void
sum_block(const elem *logits, size_t n, float softcap, bool smooth, v16 base, double *sum, double *all)
{
    v16 alls;
    *sum += v16_sum(block_lanes(logits, n, softcap, smooth, base, &alls));
    if (smooth)
        *all += v16_sum(alls);
}

/*
 * More of a row, or of a piece of one, read once: a block goes through the first-level cache twice, for its maximum and
 * for its exponentials.  The sum so far is rescaled when the maximum moves.  tanh keeps the order, so that the largest
 * logit has the largest x.
 */
CK_TEMPLATE void
sum_row(ck_measure *row, const elem *logits, size_t V, float softcap, bool smooth)
{
    for (size_t begin = 0; begin < V; begin += CK_ROW_BLOCK) {
        const size_t n = block_end(begin, V) - begin;
        const float peak = score(v16_splat(largest(logits + begin, n, v16_splat(1.0f))), softcap);
        if (peak > row->peak) {
            row->sum = row->sum == 0 ? 0 : CK_FAULT(loss_no_rescale) ? row->sum : row->sum * exp((double)row->peak - peak);
            row->peak = peak;
        }
        sum_block(logits + begin, n, softcap, smooth, base_of(row->peak), &row->sum, &row->other);
    }
}

static const ck_measure ck_nothing = {.peak = -INFINITY};

/* What sum_row finds in each of n short rows, with one wait for the folds of all. */
CK_TEMPLATE void
sum_short_rows(ck_measure *rows, const elem *const *logits, size_t n, size_t V, float softcap, bool smooth)
{
    v16 lanes[CK_ROW_GANG], alls[CK_ROW_GANG], slope;
    float peak[CK_ROW_GANG], sum[CK_ROW_GANG], all[CK_ROW_GANG] = {0};

    for (size_t j = 0; j < n; j++)
        lanes[j] = largest_lanes(logits[j], V, v16_splat(1.0f));
    fold_gang(peak, lanes, n, true);
    v16_store_f32(peak, capped(v16_load_f32(peak, CK_ROW_GANG), softcap, &slope), CK_ROW_GANG);
    for (size_t j = 0; j < n; j++) {
        rows[j].peak = peak[j] > -INFINITY ? peak[j] : -INFINITY;
        lanes[j] = block_lanes(logits[j], V, softcap, smooth, base_of(rows[j].peak), &alls[j]);
    }
    fold_gang(sum, lanes, n, false);
    if (smooth)
        fold_gang(all, alls, n, false);
    for (size_t j = 0; j < n; j++) {
        rows[j].sum = sum[j];
        rows[j].other = all[j];
    }
}

static inline void
measure_short_rows(ck_measure *rows, const elem *const *logits, size_t n, size_t V, float softcap, bool smooth)
{
    if (!isinf(softcap))
        sum_short_rows(rows, logits, n, V, softcap, smooth);
    else if (smooth)
        sum_short_rows(rows, logits, n, V, INFINITY, true);
    else
        sum_short_rows(rows, logits, n, V, INFINITY, false);
}

/* Adds V logits to what is measured of a row; the sum of all x only where `smooth`. */
static inline void
measure(ck_measure *row, const elem *logits, size_t V, float softcap, bool smooth)
{
    if (!isinf(softcap))
        sum_row(row, logits, V, softcap, smooth);
    else if (smooth)
        sum_row(row, logits, V, INFINITY, true);
    else
        sum_row(row, logits, V, INFINITY, false);
}

/* ---- backward ---- */

typedef struct {
    const elem *logits;
    v16 peak, scale, smooth; /* smooth: negative */
    float softcap;
} spread;

CK_TEMPLATE v16
dx_plain(const void *of, size_t v, size_t n)
{
    const spread *s = of;
    ck_prefetch(s->logits + v + CK_ROW_BLOCK);
    return v16_fma(v16_exp_elem(v16_sub(v16_load(s->logits + v, n), s->peak)), s->scale, s->smooth);
}

CK_TEMPLATE v16
dx_capped(const void *of, size_t v, size_t n)
{
    const spread *s = of;
    v16 slope;
    const v16 x = capped(v16_load(s->logits + v, n), s->softcap, &slope);
    const v16 dx = v16_fma(v16_exp_elem(v16_sub(x, s->peak)), s->scale, s->smooth);
    return v16_mul(dx, v16_fma(v16_neg(slope), slope, v16_splat(1.0f)));
}

/* The gradient at the target, from doubles: its terms cancel. */
static inline v16
at_target(const elem *logit, float softcap, float peak, double scale, double smooth, double g)
{
    v16 slopes;
    const v16 x = capped(v16_load(logit, 1), softcap, &slopes);
    const double e = first(v16_exp(v16_sub(x, v16_splat(peak)))), slope = first(slopes);
    return v16_splat((float)((scale * e - smooth - (CK_FAULT(loss_gradient_one) ? 0 : g)) * (1 - slope * slope)));
}

/* What the gradient of a row depends on beside its logits; V: all classes, where `logits` may be some of them. */
typedef struct {
    double g, label_smoothing, z_loss;
    size_t V;
    float softcap, peak, sum;
} ck_loss_row;

/* The gradient of n logits of a row; the target is logits[t] where t < n, and elsewhere otherwise. */
static inline void
spread_row(elem *dlogits, const elem *logits, size_t n, size_t t, const ck_loss_row *row, bool stream)
{
    const double sum = row->sum, lse = row->z_loss > 0 ? row->peak + ck_log(sum) : 0, g = row->g;
    const double scale = g * (1 + 2 * row->z_loss * lse) / sum, smooth = g * row->label_smoothing / (double)row->V;
    const spread of = {logits, v16_splat(row->peak), v16_splat((float)scale), v16_splat((float)-smooth), row->softcap};
    v16 target = v16_zero();

    if (t < n) /* before it is overwritten */
        target = at_target(logits + t, row->softcap, row->peak, scale, smooth, g * (1 - row->label_smoothing));
    if (isinf(row->softcap))
        write_row(dlogits, n, stream, dx_plain, &of);
    else
        write_row(dlogits, n, stream, dx_capped, &of);
    if (t < n)
        v16_store(dlogits + t, target, 1);
}
#endif

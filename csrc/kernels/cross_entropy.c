#include "kernels/rows.h"
#include "ops/cross_entropy.h"
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
static inline float first(v16 x) { return v16_sum(v16_select(v16_first(1), x, v16_zero())); }

static inline float
score(v16 logit, float softcap)
{
    v16 slope;
    return first(capped(logit, softcap, &slope));
}

/* ---- forward ---- */

/* Of a block of n: the sum of exp(x - base), and where `smooth` that of x.  Fetches what follows the block. */
CK_TEMPLATE void
sum_block(const elem *logits, size_t n, float softcap, bool smooth, v16 base, double *sum, double *all)
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
    *sum += v16_sum(sums);
    if (smooth)
        *all += v16_sum(alls);
}

/*
 * A row, or a piece of one, read once: a block goes through the first-level cache twice, for its maximum and for its
 * exponentials.  The sum so far is rescaled when the maximum moves.  tanh keeps the order, so that the largest logit
 * has the largest x.
 */
CK_TEMPLATE ck_measure
sum_row(const elem *logits, size_t V, float softcap, bool smooth)
{
    ck_measure row = {.peak = -INFINITY};
    for (size_t begin = 0; begin < V; begin += CK_ROW_BLOCK) {
        const size_t n = block_end(begin, V) - begin;
        const float peak = score(v16_splat(largest(logits + begin, n, v16_splat(1.0f))), softcap);
        if (peak > row.peak) {
            row.sum = begin == 0 ? 0 : row.sum * exp((double)row.peak - peak);
            row.peak = peak;
        }
        sum_block(logits + begin, n, softcap, smooth, base_of(row.peak), &row.sum, &row.other);
    }
    return row;
}

static ck_measure
measure(const struct ck_cross_entropy_fwd *a, const elem *logits, size_t V)
{
    const float softcap = (float)a->softcap;
    const bool smooth = a->label_smoothing > 0;
    if (!isinf(softcap))
        return sum_row(logits, V, softcap, smooth);
    return smooth ? sum_row(logits, V, INFINITY, true) : sum_row(logits, V, INFINITY, false);
}

/* The loss of row r, and what is kept of it. */
static double
finish(const struct ck_cross_entropy_fwd *a, size_t r, int64_t t, ck_measure row)
{
    const double s = a->label_smoothing;
    double loss = 0;

    if (t != a->ignore_index) {
        const double lse = row.peak + log(row.sum);
        const elem *logits = ck_row(&a->logits, r);
        loss = lse - (1 - s) * score(v16_load(logits + t, 1), (float)a->softcap) + a->z_loss * lse * lse;
        if (s > 0)
            loss -= s / (double)a->V * row.other;
    }
    if (a->losses != NULL)
        a->losses[r] = (float)loss;
    if (a->peak != NULL)
        a->peak[r] = row.peak;
    if (a->sum != NULL)
        a->sum[r] = (float)row.sum;
    return loss;
}

/* Of whole rows, task.work is the sum of their losses; of rows that are cut, a ck_pieces. */
CK_KERNEL(cross_entropy_fwd)
{
    const ck_measure nothing = {.peak = -INFINITY};
    const ck_pieces *cut = a->V > CK_PIECE ? task.work : NULL;
    double total = 0;

    for (size_t i = task.begin; i < task.end; i++) {
        const ck_span s = cut != NULL ? ck_piece_at(cut, i, a->V) : (ck_span){i, 0, a->V, NULL, NULL};
        const int64_t t = ck_id(&a->target, s.row);
        if (cut != NULL && cut->write) {
            if (s.begin == 0)
                s.whole->other = finish(a, s.row, t, t == a->ignore_index ? nothing : *s.whole);
            continue;
        }
        const elem *logits = (const elem *)ck_row(&a->logits, s.row) + s.begin;
        const ck_measure m = t == a->ignore_index ? nothing : measure(a, logits, s.n);
        if (cut != NULL)
            *s.part = m;
        else
            total += finish(a, s.row, t, m);
    }
    if (cut == NULL)
        *(double *)task.work = total;
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
    return v16_splat((float)((scale * e - smooth - g) * (1 - slope * slope)));
}

static void
spread_row(const struct ck_cross_entropy_bwd *a, ck_span s, int64_t t, double share, bool stream)
{
    const elem *logits = (const elem *)ck_row(&a->logits, s.row) + s.begin;
    elem *dlogits = (elem *)ck_row(&a->dlogits, s.row) + s.begin;
    const float softcap = (float)a->softcap, peak = a->peak[s.row];
    const double g = a->dy.data != NULL ? *(const float *)ck_row(&a->dy, s.row) : a->dloss * share;
    const double sum = a->sum[s.row], lse = a->z_loss > 0 ? peak + log(sum) : 0;
    const double scale = g * (1 + 2 * a->z_loss * lse) / sum, smooth = g * a->label_smoothing / (double)a->V;
    const spread of = {logits, v16_splat(peak), v16_splat((float)scale), v16_splat((float)-smooth), softcap};
    const bool here = (size_t)t >= s.begin && (size_t)t - s.begin < s.n;
    v16 target = v16_zero();

    if (here) /* before it is overwritten */
        target = at_target(logits + (t - (int64_t)s.begin), softcap, peak, scale, smooth, g * (1 - a->label_smoothing));
    if (isinf(softcap))
        write_row(dlogits, s.n, stream, dx_plain, &of);
    else
        write_row(dlogits, s.n, stream, dx_capped, &of);
    if (here)
        v16_store(dlogits + (t - (int64_t)s.begin), target, 1);
}

/* Items are rows, or pieces of rows that are cut. */
CK_KERNEL(cross_entropy_bwd)
{
    const size_t pieces = a->V > CK_PIECE ? (a->V - 1) / CK_PIECE + 1 : 1;
    const ck_pieces cut = {.pieces = pieces};
    const bool stream = streams(2, &a->dlogits, &a->logits, a->R, a->V);

    for (size_t i = task.begin; i < task.end; i++) {
        const ck_span s = pieces > 1 ? ck_piece_at(&cut, i, a->V) : (ck_span){i, 0, a->V, NULL, NULL};
        const int64_t t = ck_id(&a->target, s.row);
        elem *dlogits = (elem *)ck_row(&a->dlogits, s.row) + s.begin;
        if (t != a->ignore_index)
            spread_row(a, s, t, *(const double *)task.work, stream);
        else
            for (size_t v = 0; v < s.n; v += 16)
                v16_store(dlogits + v, v16_zero(), s.n - v);
    }
    if (stream)
        ck_stream_end();
}

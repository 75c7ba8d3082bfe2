#include "reference/reference.h"
#include "ops/cross_entropy.h"
#include "ops/pieces.h"

static double
capped(const elem *logit, double softcap)
{
    return isinf(softcap) ? get(logit) : softcap * tanh(get(logit) / softcap);
}

CK_KERNEL(cross_entropy_fwd)
{
    const ck_pieces *cut = a->V > CK_PIECE ? task.work : NULL;
    double total = 0;
    for (size_t i = task.begin; i < task.end; i++) {
        if (cut && (!cut->write || i % cut->pieces != 0)) /* the first piece to be written stands for its row */
            continue;
        const size_t r = cut ? cut->row + i / cut->pieces : i;
        const elem *logits = ck_row(&a->logits, r);
        const int64_t t = ck_id(&a->target, r);
        double peak = -INFINITY, sum = 0, all = 0, loss = 0;
        if (t != a->ignore_index) {
            for (size_t v = 0; v < a->V; v++)
                peak = fmax(peak, capped(&logits[v], a->softcap));
            peak = (float)peak; /* as it is saved, so that the sum is relative to what backward will read */
            for (size_t v = 0; v < a->V; v++) {
                sum += exp(capped(&logits[v], a->softcap) - peak);
                all += capped(&logits[v], a->softcap);
            }
            const double s = a->label_smoothing, lse = peak + log(sum);
            loss = lse - (1 - s) * capped(&logits[t], a->softcap) + a->z_loss * lse * lse;
            if (s > 0)
                loss -= s / (double)a->V * all;
        }
        if (a->losses)
            a->losses[r] = (float)loss;
        if (a->peak)
            a->peak[r] = (float)peak;
        if (a->sum)
            a->sum[r] = (float)sum;
        if (cut)
            cut->whole[i / cut->pieces].other = loss;
        total += loss;
    }
    if (!cut)
        *(double *)task.work = total;
}

CK_KERNEL(cross_entropy_bwd)
{
    const double share = *(const double *)task.work, s = a->label_smoothing;
    const size_t pieces = a->V > CK_PIECE ? (a->V - 1) / CK_PIECE + 1 : 1;
    for (size_t i = task.begin; i < task.end; i++) {
        if (i % pieces != 0)
            continue;
        const size_t r = i / pieces;
        const elem *logits = ck_row(&a->logits, r);
        elem *dlogits = ck_row(&a->dlogits, r);
        const int64_t t = ck_id(&a->target, r);
        const double g = a->dy.data ? *(const float *)ck_row(&a->dy, r) : a->dloss * share;
        for (size_t v = 0; v < a->V; v++) {
            double dx = 0;
            if (t != a->ignore_index) {
                const double x = capped(&logits[v], a->softcap), p = exp(x - a->peak[r]) / a->sum[r];
                const double lse = a->peak[r] + log(a->sum[r]), slope = isinf(a->softcap) ? 0 : x / a->softcap;
                dx = g * ((1 + 2 * a->z_loss * lse) * p - (v == (size_t)t ? 1 - s : 0) - s / (double)a->V);
                dx *= 1 - slope * slope;
            }
            set(&dlogits[v], dx);
        }
    }
}

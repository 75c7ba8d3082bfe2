#include "reference/reference.h"
#include "ops/linear_cross_entropy.h"

static double
capped(const elem *logit, double softcap)
{
    return isinf(softcap) ? get(logit) : softcap * tanh(get(logit) / softcap);
}

CK_KERNEL(logits_block_fwd)
{
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *logits = ck_row(&a->logits, r);
        const int64_t t = ck_id(&a->target, a->row + r);
        ck_seen *seen = &a->state[r];
        double peak = seen->peak;
        if (t == a->ignore_index)
            continue;
        for (size_t v = 0; v < a->N; v++)
            peak = fmax(peak, capped(&logits[v], a->softcap));
        peak = (float)peak; /* as it is saved, so that the sum is relative to what backward will read */
        if (seen->sum != 0)
            seen->sum *= exp(seen->peak - peak);
        seen->peak = (float)peak;
        for (size_t v = 0; v < a->N; v++) {
            const double x = capped(&logits[v], a->softcap);
            seen->sum += isinf(peak) && peak < 0 ? exp(x) : exp(x - peak);
            seen->other += x;
            if (a->first + v == (size_t)t)
                seen->target = x;
        }
    }
}

CK_KERNEL(logits_block_bwd)
{
    const double s = a->label_smoothing;
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *logits = ck_row(&a->logits, r);
        elem *dlogits = ck_row(&a->dlogits, r);
        const int64_t t = ck_id(&a->target, a->row + r);
        const double g = a->dy.data ? *(const float *)ck_row(&a->dy, a->row + r) : a->dloss;
        for (size_t v = 0; v < a->N; v++) {
            double dx = 0;
            if (t != a->ignore_index) {
                const double x = capped(&logits[v], a->softcap), p = exp(x - a->peak[r]) / a->sum[r];
                const double lse = a->peak[r] + log(a->sum[r]), slope = isinf(a->softcap) ? 0 : x / a->softcap;
                dx = g * ((1 + 2 * a->z_loss * lse) * p - (a->first + v == (size_t)t ? 1 - s : 0) - s / (double)a->V);
                dx *= 1 - slope * slope;
            }
            set(&dlogits[v], dx);
        }
    }
}

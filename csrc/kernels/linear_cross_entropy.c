#include "kernels/cross_entropy_row.h"
#include "ops/linear_cross_entropy.h"

/* Items are rows of the block. */
CK_KERNEL(logits_block_fwd)
{
    for (size_t r = task.begin; r < task.end; r++) {
        const int64_t t = ck_id(&a->target, a->row + r);
        const elem *logits = ck_row(&a->logits, r);
        const size_t at = (size_t)t - a->first; /* wraps for a target before the block */
        ck_seen *seen = a->state + r;

        if (t == a->ignore_index)
            continue;
        ck_measure row = {CK_FAULT(linear_loss_sum_anew) ? 0 : seen->sum, seen->other, seen->peak};
        measure(&row, logits, a->N, (float)a->softcap, a->smooth);
        seen->sum = row.sum, seen->other = row.other, seen->peak = row.peak;
        if (at < a->N)
            seen->target = score(v16_load(logits + at, 1), (float)a->softcap);
    }
}

CK_KERNEL(logits_block_bwd)
{
    for (size_t r = task.begin; r < task.end; r++) {
        const int64_t t = ck_id(&a->target, a->row + r);
        const double g = a->dy.data != NULL ? *(const float *)ck_row(&a->dy, a->row + r) : a->dloss;
        const ck_loss_row row = {g, a->label_smoothing, a->z_loss, a->V, (float)a->softcap, a->peak[r], a->sum[r]};
        elem *dlogits = ck_row(&a->dlogits, r);

        if (t != a->ignore_index)
            spread_row(dlogits, ck_row(&a->logits, r), a->N, (size_t)t - (CK_FAULT(linear_loss_first_class) ? 0 : a->first), &row, false); /* it is read next */
        else
            for (size_t v = 0; v < a->N; v += 16)
                v16_store(dlogits + v, v16_zero(), a->N - v);
    }
}

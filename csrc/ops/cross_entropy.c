#include "ops/cross_entropy.h"

#include "faults.h"
#include "ops/loss.h"
#include "ops/ops.h"
#include "ops/pieces.h"
#include "runtime/run.h"

#include <math.h>

ck_status
ck_count_targets(const ck_array *target, int64_t ignore_index, size_t R, size_t V, const char *of, size_t *counted)
{
    *counted = 0;
    if (ck_is_flat(target, 1) && target->width == sizeof(int64_t)) { /* as vectors, where nothing is to be refused */
        const int64_t *id = target->data;
        size_t n = 0, bad = 0;
        for (size_t r = 0; r < R; r++) {
            const size_t counts = id[r] != ignore_index;
            n += counts;
            bad += counts & ((uint64_t)id[r] >= V);
        }
        *counted = n;
        if (bad == 0)
            return CK_OK;
    }
    *counted = 0;
    for (size_t r = 0; r < R; r++) {
        const int64_t t = ck_id(target, r);
        if (t == ignore_index) {
            *counted += CK_FAULT(loss_ignored_counted);
            continue;
        }
        if (t < 0 || (uint64_t)t >= V)
            return ck_refuse(CK_BAD_INDEX, "'target' holds %lld at position %zu, and '%s' has classes 0 to %lld",
                             (long long)t, r, of, (long long)V - 1);
        ++*counted;
    }
    return CK_OK;
}

ck_status
ck_refuse_loss_options(double label_smoothing, double z_loss, double softcap)
{
    if (!(label_smoothing >= 0 && label_smoothing <= 1))
        return ck_refuse(CK_BAD_VALUE, "'label_smoothing' must be 0 to 1, not %g", label_smoothing);
    if (!(z_loss >= 0 && z_loss < INFINITY))
        return ck_refuse(CK_BAD_VALUE, "'z_loss' must be finite and not negative, not %g", z_loss);
    if (!((float)softcap > 0)) /* as a float, which kernels divide by */
        return ck_refuse(CK_BAD_VALUE, "'softcap' must be positive, not %g", softcap);
    return CK_OK;
}

CK_RUN(cross_entropy_fwd)
{
    size_t counted;
    ck_status status = ck_refuse_loss_options(a->label_smoothing, a->z_loss, a->softcap);
    if (status == CK_OK)
        status = ck_count_targets(&a->target, a->ignore_index, a->R, a->V, "logits", &counted);
    if (status != CK_OK)
        return status;

    const double divisor = a->mean && !CK_FAULT(loss_sum) ? (double)counted : 1;
    if (a->V <= CK_PIECE)
        return ck_run_loss(CK_FAST(cross_entropy_fwd), a, a->R, ck_rows_grain(a->R, a->V), divisor, a->loss);
    double sum = 0;
    status = ck_run_pieces(CK_FAST(cross_entropy_fwd), a, a->R, a->V, 0, &sum);
    if (status == CK_OK && a->loss != NULL)
        *a->loss = (float)(sum / divisor);
    return status;
}

CK_RUN(cross_entropy_bwd)
{
    size_t counted;
    ck_status status = ck_refuse_loss_options(a->label_smoothing, a->z_loss, a->softcap);
    if (status == CK_OK)
        status = ck_count_targets(&a->target, a->ignore_index, a->R, a->V, "logits", &counted);
    if (status != CK_OK)
        return status;
    double share = a->mean ? 1 / (double)counted : 1;
    ck_job job = {.kernel = CK_FAST(cross_entropy_bwd), .args = a, .n = a->R, .grain = ck_rows_grain(a->R, a->V),
                  .work = &share};
    if (a->V > CK_PIECE)
        job.n *= ck_blocks(a->V, CK_PIECE), job.grain = 1;
    return ck_run(&job);
}

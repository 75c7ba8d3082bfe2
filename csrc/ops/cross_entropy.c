#include "ops/ops.h"
#include "runtime/run.h"

#include <math.h>

static ck_status
check_targets(const ck_array *target, int64_t ignore_index, size_t R, size_t V, size_t *counted)
{
    *counted = 0;
    for (size_t r = 0; r < R; r++) {
        const int64_t t = ck_id(target, r);
        if (t == ignore_index)
            continue;
        if (t < 0 || (uint64_t)t >= V)
            return ck_refuse(CK_BAD_INDEX, "'target' holds %lld at position %zu, and 'logits' has classes 0 to %lld",
                             (long long)t, r, (long long)V - 1);
        ++*counted;
    }
    return CK_OK;
}

static ck_status
check_options(double label_smoothing, double z_loss, double softcap)
{
    if (!(label_smoothing >= 0 && label_smoothing <= 1))
        return ck_refuse(CK_BAD_VALUE, "'label_smoothing' must be 0 to 1, not %g", label_smoothing);
    if (!(z_loss >= 0 && z_loss < INFINITY))
        return ck_refuse(CK_BAD_VALUE, "'z_loss' must be finite and not negative, not %g", z_loss);
    if (!(softcap > 0))
        return ck_refuse(CK_BAD_VALUE, "'softcap' must be positive, not %g", softcap);
    return CK_OK;
}

CK_RUN(cross_entropy_fwd)
{
    size_t counted;
    ck_status status = check_options(a->label_smoothing, a->z_loss, a->softcap);
    if (status == CK_OK)
        status = check_targets(&a->target, a->ignore_index, a->R, a->V, &counted);
    if (status != CK_OK)
        return status;

    const size_t grain = ck_grain(a->V), blocks = ck_blocks(a->R, grain);
    double *parts = ck_take(blocks * sizeof *parts), sum = 0;
    if (parts == NULL)
        return CK_NO_MEMORY;
    status = ck_run(&(ck_job){.kernel = CK_FAST(cross_entropy_fwd), .args = a, .n = a->R, .grain = grain,
                              .work = parts, .work_each = sizeof *parts});
    for (size_t i = 0; status == CK_OK && i < blocks; i++)
        sum += parts[i];
    if (status == CK_OK && a->loss != NULL)
        *a->loss = (float)(a->mean ? sum / (double)counted : sum);
    ck_give(parts, blocks * sizeof *parts);
    return status;
}

CK_RUN(cross_entropy_bwd)
{
    size_t counted;
    ck_status status = check_options(a->label_smoothing, a->z_loss, a->softcap);
    if (status == CK_OK)
        status = check_targets(&a->target, a->ignore_index, a->R, a->V, &counted);
    if (status != CK_OK)
        return status;
    double share = a->mean ? 1 / (double)counted : 1;
    return ck_run(&(ck_job){.kernel = CK_FAST(cross_entropy_bwd), .args = a, .n = a->R, .grain = ck_grain(a->V),
                            .work = &share});
}

#include "ops/ops.h"
#include "runtime/run.h"

#include <float.h>
#include <math.h>

static ck_status
check_rows(const char *name, size_t R, size_t C)
{
    if (C == 0 && R > 0)
        return ck_refuse(CK_BAD_VALUE, "'%s' has rows of no elements: there is none to choose", name);
    return CK_OK;
}

static ck_status
check_short(const char *name, size_t C)
{
    return C > UINT32_MAX ? ck_refuse(CK_TOO_LARGE, "'%s' has rows of %zu elements, more than 2^32 - 1", name, C) : CK_OK;
}

/* The first of the blocks of every row. */
static void
fold(const struct ck_argmax_fwd *a, const ck_argmax_part *part, size_t blocks)
{
    for (size_t r = 0; r < a->R; r++, part += blocks) {
        const ck_argmax_part *first = part;
        for (size_t i = 1; i < blocks; i++)
            if (first->value == first->value && !(part[i].value <= first->value))
                first = &part[i];
        *(int64_t *)ck_row(&a->y, r) = (int64_t)first->index;
    }
}

CK_RUN(argmax_fwd)
{
    const size_t blocks = ck_argmax_blocks(a->C), size = a->R * blocks * sizeof(ck_argmax_part);
    ck_status status = check_rows("x", a->R, a->C);

    if (status != CK_OK || blocks <= 1)
        return status != CK_OK ? status : ck_tasks(a->R, ck_grain(a->C), CK_FAST(argmax_fwd), a);
    ck_argmax_part *parts = ck_take(size);
    if (parts == NULL)
        return CK_NO_MEMORY;
    status = ck_run(&(ck_job){.kernel = CK_FAST(argmax_fwd), .args = a, .n = a->R * blocks, .grain = 1,
                              .work = parts, .work_each = sizeof *parts});
    if (status == CK_OK)
        fold(a, parts, blocks);
    ck_give(parts, size);
    return status;
}

CK_RUN(topk_fwd)
{
    const ck_status status = check_short("x", a->C);
    if (status != CK_OK || a->k == 0)
        return status;
    return ck_run(&(ck_job){.kernel = CK_FAST(topk_fwd), .args = a, .n = a->R, .grain = ck_grain(a->C),
                            .scratch_each = ck_topk_scratch((size_t)a->k)});
}

static ck_status
check_options(const struct ck_sample_fwd *a)
{
    if (!(a->temperature == 0 || (a->temperature >= FLT_MIN && a->temperature <= FLT_MAX)))
        return ck_refuse(CK_BAD_VALUE, "'temperature' must be 0, or a normal float32 above it, not %g", a->temperature);
    if (a->top_k < 1)
        return ck_refuse(CK_BAD_VALUE, "'top_k' must be 1 or more, not %lld", (long long)a->top_k);
    if (!(a->top_p > 0 && a->top_p <= 1))
        return ck_refuse(CK_BAD_VALUE, "'top_p' must be above 0 and at most 1, not %g", a->top_p);
    if (!(a->min_p >= 0 && a->min_p <= 1))
        return ck_refuse(CK_BAD_VALUE, "'min_p' must be 0 to 1, not %g", a->min_p);
    return CK_OK;
}

static ck_status
check_peaks(const float *peak, size_t R)
{
    for (size_t r = 0; r < R; r++)
        if (!isfinite(peak[r]))
            return ck_refuse(CK_BAD_VALUE, peak[r] == -INFINITY ? "the logits of row %zu are all -inf, so none can be drawn"
                                           : peak[r] == INFINITY ? "the logits hold inf in row %zu, so none can be drawn"
                                                                 : "the logits hold NaN in row %zu, so none can be drawn", r);
    return CK_OK;
}

CK_RUN(sample_fwd)
{
    ck_status status = check_options(a);
    if (status == CK_OK)
        status = check_rows("logits", a->R, a->V);
    if (status == CK_OK)
        status = check_short("logits", a->V);
    if (status != CK_OK || a->R == 0)
        return status;
    if (a->temperature == 0)
        return ck_argmax_fwd(k, &(struct ck_argmax_fwd){.y = a->y, .x = a->logits, .R = a->R, .C = a->V});

    float *peak = ck_take(a->R * sizeof *peak);
    if (peak == NULL)
        return CK_NO_MEMORY;
    status = ck_tasks(a->R, ck_grain(a->V), CK_FAST(sample_peaks), &(struct ck_sample_peaks){a, peak});
    if (status == CK_OK)
        status = check_peaks(peak, a->R);
    if (status == CK_OK)
        status = ck_run(&(ck_job){.kernel = CK_FAST(sample_fwd), .args = a, .n = a->R, .grain = ck_grain(a->V),
                                  .work = &(ck_sample_work){peak}, .scratch_each = ck_sample_scratch(a->V)});
    ck_give(peak, a->R * sizeof *peak);
    return status;
}

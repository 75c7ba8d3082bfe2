#include "ops/layer_norm.h"

#include "ops/ops.h"
#include "ops/norm_rows.h"
#include "runtime/run.h"

CK_RUN(layer_norm_fwd)
{
    const size_t row = a->C * sizeof(float);
    struct ck_layer_norm_fwd wide = *a;
    float *weight = NULL, *bias = NULL;
    ck_status status = ck_widen_weight(k, &wide.weight, a->C, &weight);

    if (status == CK_OK)
        status = ck_widen_weight(k, &wide.bias, a->C, &bias);
    if (status == CK_OK)
        status = ck_run_norm(CK_FAST(layer_norm_fwd), &wide, a->R, a->C, ck_grain(a->C), NULL);
    ck_give(bias, row);
    ck_give(weight, row);
    return status;
}

/* The sum of the blocks' shares, where it is wanted. */
static ck_status
fold(const ck_kernels *k, ck_array sum, const float *parts, size_t blocks, size_t C, int accumulate)
{
    if (sum.data == NULL)
        return CK_OK;
    return ck_sum_rows(k, &(struct ck_sum_rows){.sum = sum, .x = ck_rows(parts, blocks, C, sizeof(float)),
                                                .accumulate = accumulate, .R = blocks, .C = C});
}

CK_RUN(layer_norm_bwd)
{
    const size_t blocks = ck_blocks(a->R, CK_LAYER_NORM_ROWS), row = a->C * sizeof(float);
    const size_t at_once = ck_blocks(ck_grain(a->C), CK_LAYER_NORM_ROWS); /* blocks that make a task */
    const size_t size = blocks * row * ((a->dweight.data != NULL) + (a->dbias.data != NULL));
    struct ck_layer_norm_bwd wide = *a;
    float *weight = NULL, *parts = NULL; /* [C]; [blocks,C] of dweight, then [blocks,C] of dbias */
    ck_status status = ck_widen_weight(k, &wide.weight, a->C, &weight);

    if (status == CK_OK && (a->dweight.data != NULL || a->dbias.data != NULL) && (parts = ck_take(size)) == NULL)
        status = CK_NO_MEMORY;
    if (status == CK_OK)
        status = ck_run_norm(CK_FAST(layer_norm_bwd), &wide, a->R, a->C, at_once * CK_LAYER_NORM_ROWS, parts);
    if (status == CK_OK)
        status = fold(k, a->dweight, parts, blocks, a->C, a->add_weight);
    if (status == CK_OK)
        status = fold(k, a->dbias, a->dweight.data != NULL ? parts + blocks * a->C : parts, blocks, a->C, a->add_bias);
    ck_give(parts, size);
    ck_give(weight, row);
    return status;
}

#include "ops/linear.h"

#include "ops/ops.h"
#include "runtime/run.h"

static bool
fits(size_t P, size_t L, size_t N)
{
    return P == ck_blocks(N, CK_PANEL) && L == CK_PANEL;
}

/* y may be residual, and nothing else; the border lets it be any IN of its shape. */
static const char *
overlapped(const struct ck_linear_fwd *a)
{
    if (a->R == 0 || a->N == 0 || a->K == 0)
        return NULL;
    return a->y.data == a->x.data ? "x" : a->y.data == a->weight.data ? "weight" : NULL;
}

CK_RUN(linear_fwd)
{
    const char *with = overlapped(a);
    if (with != NULL)
        return ck_refuse(CK_BAD_VALUE, "'out' is written and overlaps '%s'", with);
    if (a->weight.data == NULL && a->packed == NULL)
        return ck_refuse(CK_BAD_TYPE, "'weight' must be an array or a packed weight, not None");
    if (a->packed != NULL && !fits(a->P, a->L, a->N))
        return ck_refuse(CK_BAD_VALUE, "'packed' [%zu, %zu, %zu] is not a weight of %zu rows", a->P, a->K, a->L, a->N);
    if (a->activation < 0 || a->activation >= CK_ACTIVATIONS)
        return ck_refuse(CK_BAD_VALUE, "'activation' is no number of an activation: %lld", (long long)a->activation);

    return ck_gemm(k, &(struct ck_gemm){
        .c = a->y, .pre = a->pre, .a = a->x, .b = a->weight, .packed = a->packed, .bias = a->bias,
        .residual = a->residual, .transpose_b = true, .activation = a->activation,
        .B = 1, .M = a->R, .N = a->N, .K = a->K});
}

/* dx, dweight and dbias from the gradient before the activation. */
static ck_status
gradients(const ck_kernels *k, const struct ck_linear_bwd *a, const ck_array *dz)
{
    ck_status status = CK_OK;
    if (a->dx.data != NULL)
        status = ck_gemm(k, &(struct ck_gemm){.c = a->dx, .a = *dz, .b = a->weight,
                                              .B = 1, .M = a->R, .N = a->K, .K = a->N});
    if (status == CK_OK && a->dweight.data != NULL)
        status = ck_gemm(k, &(struct ck_gemm){.c = a->dweight, .a = *dz, .b = a->x, .transpose_a = true,
                                              .residual = a->accumulate ? a->dweight : (ck_array){0},
                                              .B = 1, .M = a->N, .N = a->K, .K = a->R});
    if (status == CK_OK && a->dbias.data != NULL)
        status = ck_sum_rows(k, &(struct ck_sum_rows){.sum = a->dbias, .x = *dz, .accumulate = a->accumulate,
                                                      .R = a->R, .C = a->N});
    return status;
}

CK_RUN(linear_bwd)
{
    if (a->dx.data != NULL && a->weight.data == NULL)
        return ck_refuse(CK_BAD_TYPE, "'weight' is needed for the gradient of x");
    if (a->dweight.data != NULL && a->x.data == NULL)
        return ck_refuse(CK_BAD_TYPE, "'x' is needed for the gradient of weight");
    if (a->activation < 0 || a->activation >= CK_ACTIVATIONS)
        return ck_refuse(CK_BAD_VALUE, "'activation' is no number of an activation: %lld", (long long)a->activation);
    if (a->activation != CK_NO_ACTIVATION && a->pre.data == NULL)
        return ck_refuse(CK_BAD_TYPE, "'pre' is needed with an activation");

    const bool copy = a->activation != CK_NO_ACTIVATION || (a->dbias.data != NULL && !ck_is_flat(&a->dy, a->N));
    const size_t size = copy ? a->R * a->N * sizeof(float) : 0;
    float *dz = NULL; /* [R,N] */
    if (copy && (dz = ck_take(size)) == NULL)
        return CK_NO_MEMORY;
    const ck_array rows = copy ? ck_rows(dz, a->R, a->N, sizeof(float)) : a->dy;

    ck_status status = CK_OK;
    if (copy)
        status = ck_linear_dz(k, &(struct ck_linear_dz){.dz = rows, .dy = a->dy, .pre = a->pre,
                                                        .activation = a->activation, .R = a->R, .N = a->N});
    if (status == CK_OK)
        status = gradients(k, a, &rows);
    if (status == CK_OK && a->dresidual.data != NULL)
        status = ck_linear_dz(k, &(struct ck_linear_dz){.dz = a->dresidual, .dy = a->dy, .R = a->R, .N = a->N});
    ck_give(dz, size);
    return status;
}

CK_RUN(linear_pack)
{
    if (!fits(a->P, a->L, a->N))
        return ck_refuse(CK_BAD_VALUE, "'out' [%zu, %zu, %zu] is not a weight of %zu rows", a->P, a->K, a->L, a->N);
    return ck_gemm_pack(k, &(struct ck_gemm_pack){.packed = a->packed, .b = a->weight, .transpose_b = true,
                                                  .K = a->K, .N = a->N});
}

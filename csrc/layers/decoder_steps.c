#include "layers/decoder_steps.h"

#include "runtime/run.h"

#include <string.h>

/* ---- norms ---- */

ck_status
ck_norm_rows(const ck_kernels *k, const ck_norm *of, ck_array y, ck_array x, size_t R, size_t C)
{
    const ck_array weight = ck_rows(of->weight, 1, C, ck_width(k)), bias = ck_rows(of->bias, 1, C, ck_width(k));
    if (of->layer_norm)
        return ck_layer_norm_fwd(k, &(struct ck_layer_norm_fwd){.y = y, .mean = of->mean, .rstd = of->rstd, .x = x,
                                                                .weight = weight, .bias = bias, .eps = of->eps, .R = R,
                                                                .C = C});
    if (of->mean != NULL)
        memset(of->mean, 0, R * sizeof *of->mean); /* none is taken off */
    return ck_rms_norm_fwd(k, &(struct ck_rms_norm_fwd){.y = y, .rstd = of->rstd, .x = x, .weight = weight, .eps = of->eps,
                                                        .offset = of->offset, .R = R, .C = C});
}

ck_status
ck_norm_rows_back(const ck_kernels *k, const ck_norm *of, ck_array dx, void *dweight, void *dbias, ck_array dy, ck_array x,
                  bool accumulate, size_t R, size_t C)
{
    const size_t width = ck_width(k);
    const ck_array weight = ck_rows(of->weight, 1, C, width);
    if (of->layer_norm)
        return ck_layer_norm_bwd(k, &(struct ck_layer_norm_bwd){
            .dx = dx, .dweight = ck_rows(dweight, 1, C, width), .dbias = ck_rows(dbias, 1, C, width), .dy = dy, .x = x,
            .weight = weight, .bias = ck_rows(of->bias, 1, C, width), .mean = of->mean, .rstd = of->rstd,
            .add_weight = accumulate, .add_bias = accumulate, .R = R, .C = C});
    if (dbias != NULL && !accumulate)
        memset(dbias, 0, C * width); /* it has none */
    return ck_rms_norm_bwd(k, &(struct ck_rms_norm_bwd){.dx = dx, .dweight = ck_rows(dweight, 1, C, width), .dy = dy, .x = x,
                                                        .weight = weight, .rstd = of->rstd, .offset = of->offset,
                                                        .accumulate = accumulate, .R = R, .C = C});
}

ck_status
ck_head_weight(const ck_kernels *k, const void *weight, double offset, size_t D, ck_array *used, float **taken)
{
    *taken = NULL;
    *used = ck_rows(weight, 1, D, ck_width(k));
    if (weight == NULL || offset == 0)
        return CK_OK;
    if ((*taken = ck_take(D * sizeof(float))) == NULL)
        return CK_NO_MEMORY;
    if (k->dtype == CK_F32)
        for (size_t c = 0; c < D; c++)
            (*taken)[c] = ((const float *)weight)[c];
    else
        TRY(ck_widen(k, &(struct ck_widen){.y = *taken, .x = *used, .C = D}));
    for (size_t c = 0; c < D; c++)
        (*taken)[c] += (float)offset; /* as rms_norm adds it */
    *used = ck_rows(*taken, 1, D, sizeof(float));
    return CK_OK;
}

/* ---- projections ---- */

ck_status
ck_project(const ck_kernels *k, const ck_projection *of, ck_array y, const void *x, ck_array residual, void *pre,
           int64_t activation, size_t R)
{
    const size_t width = ck_width(k);
    return ck_linear_fwd(k, &(struct ck_linear_fwd){
        .y = y, .pre = ck_rows(pre, R, of->N, width), .x = ck_rows(x, R, of->K, width),
        .weight = ck_rows(of->weight, of->N, of->K, width), .bias = of->bias, .residual = residual, .activation = activation,
        .R = R, .K = of->K, .N = of->N});
}

ck_status
ck_project_back(const ck_kernels *k, const ck_projection *of, ck_array dy, const void *x, void *dx, bool more, void *dweight,
                void *dbias, bool accumulate, size_t R)
{
    const size_t width = ck_width(k), N = of->N, K = of->K;
    const ck_array rows = ck_rows(dx, R, K, width);
    TRY(ck_gemm(k, &(struct ck_gemm){.c = rows, .a = dy, .b = ck_rows(of->weight, N, K, width),
                                     .residual = more ? rows : ck_absent, .B = 1, .M = R, .N = K, .K = N}));
    return ck_linear_bwd(k, &(struct ck_linear_bwd){.dweight = ck_rows(dweight, N, K, width),
                                                    .dbias = ck_rows(dbias, 1, N, width), .dy = dy,
                                                    .x = ck_rows(x, R, K, width), .accumulate = accumulate, .R = R, .K = K,
                                                    .N = N});
}

/* ---- the gate of the MLP ---- */

#define UNITS(EACH)                   \
    EACH(CK_SILU, swiglu)             \
    EACH(CK_RELU, reglu)              \
    EACH(CK_GELU, geglu)              \
    EACH(CK_GELU_TANH, geglu_tanh)    \
    EACH(CK_GELU_SIGMOID, geglu_sigmoid)

ck_status
ck_gate(const ck_kernels *k, int64_t activation, ck_array y, ck_array gate, ck_array up, size_t R, size_t F)
{
#define FORWARD(number, unit)                                                                                   \
    if (activation == (number))                                                                                 \
        return ck_##unit##_fwd(k, &(struct ck_##unit##_fwd){.y = y, .gate = gate, .up = up, .R = R, .F = F});
    UNITS(FORWARD)
    return ck_refuse(CK_BAD_VALUE, "'activation' is no number of a gate's: %lld", (long long)activation);
}

ck_status
ck_gate_back(const ck_kernels *k, int64_t activation, ck_array dgate, ck_array dup, ck_array dy, ck_array gate, ck_array up,
             size_t R, size_t F)
{
#define BACKWARD(number, unit)                                                                                            \
    if (activation == (number))                                                                                           \
        return ck_##unit##_bwd(k, &(struct ck_##unit##_bwd){.dgate = dgate, .dup = dup, .dy = dy, .gate = gate, .up = up, \
                                                            .R = R, .F = F});
    UNITS(BACKWARD)
    return ck_refuse(CK_BAD_VALUE, "'activation' is no number of a gate's: %lld", (long long)activation);
}

/* ---- rotation ---- */

struct ck_rope_fwd
ck_turn(const ck_angles *at, size_t B, size_t T, size_t H, size_t D)
{
    const size_t width = sizeof(float);
    return (struct ck_rope_fwd){
        .cos = ck_rows(at->cos, at->P, at->K, width), .sin = ck_rows(at->sin, at->P, at->K, width),
        .positions = at->positions != NULL ? ck_rows(at->positions, B, T, sizeof *at->positions) : ck_absent,
        .N = B * H, .T = T, .D = D, .S = at->P, .K = at->K, .P = B};
}

ck_status
ck_rotate(const ck_kernels *k, const ck_angles *at, void *y, const void *x, size_t B, size_t T, size_t H, size_t D)
{
    struct ck_rope_fwd a = ck_turn(at, B, T, H, D);
    a.y = ck_heads(y, B, T, H, D, ck_width(k)), a.x = ck_heads(x, B, T, H, D, ck_width(k));
    return ck_rope_fwd(k, &a);
}

ck_status
ck_rotate_back(const ck_kernels *k, const ck_angles *at, void *dx, const void *dy, size_t B, size_t T, size_t H, size_t D)
{
    const struct ck_rope_fwd a = ck_turn(at, B, T, H, D);
    return ck_rope_bwd(k, &(struct ck_rope_bwd){
        .dx = ck_heads(dx, B, T, H, D, ck_width(k)), .dy = ck_heads(dy, B, T, H, D, ck_width(k)), .cos = a.cos, .sin = a.sin,
        .positions = a.positions, .N = a.N, .T = T, .D = D, .S = a.S, .K = a.K, .P = B});
}

/* ---- the rest ---- */

ck_status
ck_sum_of(const ck_kernels *k, ck_array out, ck_array x, ck_array y, size_t R, size_t C)
{
    return ck_add_fwd(k, &(struct ck_add_fwd){.out = out, .x = x, .y = y, .alpha = 1.0, .R = R, .C = C});
}

ck_status
ck_refuse_layer(size_t H, size_t G, double scale, double softcap, int64_t window, int64_t activation)
{
    if (G == 0 ? H != 0 : H % G != 0)
        return ck_refuse(CK_BAD_VALUE, "%zu heads are not a multiple of %zu kv heads", H, G);
    if (window < 0)
        return ck_refuse(CK_BAD_VALUE, "'window' must be a number of keys, or 0 for all, not %lld", (long long)window);
    if (activation < CK_RELU || activation > CK_GELU_SIGMOID)
        return ck_refuse(CK_BAD_VALUE, "'activation' is no number of an MLP's: %lld", (long long)activation);
    return ck_attention_refuse(H, G, -1, -1, scale, softcap);
}

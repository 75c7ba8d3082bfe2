/* The backward pass of a layer. */
#include "layers/decoder_steps.h"
#include "runtime/run.h"

#define ROWS(data, n) ck_rows(data, a->B * a->T, n, ck_width(k))

/* The gradient of what is added to the residual before the attention branch: in a parallel layer there is no other. */
static ck_array
d_residual1(const ck_kernels *k, const struct ck_decoder_bwd *a)
{
    return a->parallel ? ck_merged(a->dy) : ROWS(a->d_residual1, a->C);
}

static ck_norm
norm_of(const struct ck_decoder_bwd *a, const void *weight, const void *bias, const float *mean, const float *rstd)
{
    return (ck_norm){weight, bias, (float *)mean, (float *)rstd, 0, a->offset, a->layer_norm};
}

/* Back through the norm behind a branch: the gradient of its input, which is `dy` itself where there is none. */
static ck_status
behind_back(const ck_kernels *k, const struct ck_decoder_bwd *a, const void *weight, const float *rstd, const void *x,
            ck_array *dy, void *dx, void *dweight)
{
    if (weight == NULL)
        return CK_OK;
    const ck_norm of = {weight, NULL, NULL, (float *)rstd, 0, a->offset, false};
    TRY(ck_norm_rows_back(k, &of, ROWS(dx, a->C), dweight, NULL, *dy, ROWS(x, a->C), a->accumulate, a->B * a->T, a->C));
    *dy = ROWS(dx, a->C);
    return CK_OK;
}

/* From d_act to the gradient of the MLP's input, in `dx`. */
static ck_status
gate_back(const ck_kernels *k, const struct ck_decoder_bwd *a, const void *x, void *dx)
{
    const size_t R = a->B * a->T, C = a->C, F = a->F;
    const ck_projection gate = {a->gate_weight, a->gate_bias, F, C}, up = {a->up_weight, a->up_bias, F, C};
    const bool gated = a->gate_weight != NULL;

    if (gated) {
        TRY(ck_gate_back(k, a->activation, ROWS(a->d_gate, F), ROWS(a->d_up, F), ROWS(a->d_act, F), ROWS(a->gate, F),
                         ROWS(a->up, F), R, F));
        TRY(ck_project_back(k, &gate, ROWS(a->d_gate, F), x, dx, false, a->dgate_weight, a->dgate_bias, a->accumulate, R));
    }
    else
        TRY(ck_linear_dz(k, &(struct ck_linear_dz){.dz = ROWS(a->d_up, F), .dy = ROWS(a->d_act, F), .pre = ROWS(a->up, F),
                                                   .activation = a->activation, .R = R, .N = F}));
    return ck_project_back(k, &up, ROWS(a->d_up, F), x, dx, gated, a->dup_weight, a->dup_bias, a->accumulate, R);
}

/*
 * From dy to d_residual1; in a parallel layer to `skip`, the gradient that reaches x past the attention branch.  Without
 * a second norm the MLP reads ln1, and leaves its part of d_ln1 there.
 */
static ck_status
mlp_back(const ck_kernels *k, const struct ck_decoder_bwd *a, ck_array skip)
{
    const size_t R = a->B * a->T, C = a->C, F = a->F;
    const ck_projection down = {a->down_weight, a->down_bias, C, F};
    const ck_norm ln2 = norm_of(a, a->ln2_weight, a->ln2_bias, a->mean2, a->rstd2);
    const bool second = a->ln2_weight != NULL;
    ck_array dy = ck_merged(a->dy);

    TRY(behind_back(k, a, a->post_mlp_norm_weight, a->rstd_mlp, a->down, &dy, a->d_down, a->dpost_mlp_norm_weight));
    TRY(ck_project_back(k, &down, dy, a->act, a->d_act, false, a->ddown_weight, a->ddown_bias, a->accumulate, R));
    TRY(gate_back(k, a, second ? a->ln2 : a->ln1, second ? a->d_ln2 : a->d_ln1));
    if (!second)
        return CK_OK;
    TRY(ck_norm_rows_back(k, &ln2, skip, a->dln2_weight, a->dln2_bias, ROWS(a->d_ln2, C),
                          a->parallel ? ck_merged(a->x) : ROWS(a->residual1, C), a->accumulate, R, C));
    return ck_sum_of(k, skip, skip, ck_merged(a->dy), R, C);
}

/* From d_attn to d_q_rope, d_k_rope, d_v. */
static ck_status
attend_back(const ck_kernels *k, const struct ck_decoder_bwd *a)
{
    const size_t B = a->B, T = a->T, H = a->H, G = a->G, D = a->D, width = ck_width(k);
    TRY(ck_attention_bwd(k, &(struct ck_attention_bwd){
        .dq = ck_heads(a->d_q_rope, B, T, H, D, width), .dk = ck_heads(a->d_k_rope, B, T, G, D, width),
        .dv = ck_heads(a->d_v, B, T, G, D, width), .dsinks = a->dsinks, .dy = ck_heads(a->d_attn, B, T, H, D, width),
        .q = ck_heads(a->q_rope, B, T, H, D, width), .k = ck_heads(a->k_rope, B, T, G, D, width),
        .v = ck_heads(a->v, B, T, G, D, width), .y = ck_heads(a->attn, B, T, H, D, width),
        .max = a->max, .sum = a->sum, .sinks = a->sinks, .left = a->window - 1, .right = -1, .causal = true,
        .scale = a->scale, .softcap = a->softcap, .accumulate = a->accumulate, .B = B, .H = H, .G = G, .T = T, .S = T,
        .D = D}));
    if (a->d_scores == NULL && a->d_probs == NULL)
        return CK_OK;
    return ck_capture_attention(k, &(ck_attention_stages){
        .q = a->q_rope, .k = a->k_rope, .v = a->v, .d_attn = a->d_attn, .sinks = a->sinks, .d_scores = a->d_scores,
        .d_probs = a->d_probs, .B = B, .T = T, .H = H, .G = G, .D = D, .window = (size_t)a->window, .scale = a->scale,
        .softcap = a->softcap});
}

/* Heads turned back, and back through their norm where there is one. */
static ck_status
turn_heads_back(const ck_kernels *k, const struct ck_decoder_bwd *a, void *dx, const void *dy, size_t H, const void *weight,
                const void *x, const float *rstd, void *dweight, void *seen)
{
    const size_t B = a->B, T = a->T, D = a->D, width = ck_width(k);
    const ck_angles at = {a->cos, a->sin, a->P, a->K, a->positions};
    const struct ck_rope_fwd how = ck_turn(&at, B, T, H, D);
    ck_array used;
    float *taken;

    if (weight == NULL)
        return ck_rotate_back(k, &at, dx, dy, B, T, H, D);
    if (seen != NULL) /* for the capture alone */
        TRY(ck_rotate_back(k, &at, seen, dy, B, T, H, D));
    ck_status status = ck_head_weight(k, weight, a->offset, D, &used, &taken);
    if (status == CK_OK)
        status = ck_qk_norm_rope_bwd(k, &(struct ck_qk_norm_rope_bwd){
            .dx = ck_heads(dx, B, T, H, D, width), .dweight = ck_rows(dweight, 1, D, width),
            .dy = ck_heads(dy, B, T, H, D, width), .x = ck_heads(x, B, T, H, D, width), .weight = used, .rstd = rstd,
            .cos = how.cos, .sin = how.sin, .positions = how.positions, .accumulate = a->accumulate, .N = how.N, .T = T,
            .D = D, .S = how.S, .K = how.K, .P = how.P});
    ck_give(taken, D * sizeof(float));
    return status;
}

/* From d_residual1 to dx. */
static ck_status
attention_back(const ck_kernels *k, const struct ck_decoder_bwd *a, ck_array skip)
{
    const size_t R = a->B * a->T, C = a->C, q = a->H * a->D, kv = a->G * a->D;
    const ck_projection q_of = {a->q_weight, a->q_bias, q, C}, k_of = {a->k_weight, a->k_bias, kv, C};
    const ck_projection v_of = {a->v_weight, a->v_bias, kv, C}, o_of = {a->o_weight, a->o_bias, C, q};
    const ck_norm ln1 = norm_of(a, a->ln1_weight, a->ln1_bias, a->mean1, a->rstd1);
    const ck_array dx = ck_merged(a->dx);
    const bool more = a->ln2_weight == NULL; /* the MLP has left its part */
    ck_array dy = d_residual1(k, a);

    TRY(behind_back(k, a, a->post_attn_norm_weight, a->rstd_attn, a->proj, &dy, a->d_proj, a->dpost_attn_norm_weight));
    TRY(ck_project_back(k, &o_of, dy, a->attn, a->d_attn, false, a->do_weight, a->do_bias, a->accumulate, R));
    TRY(attend_back(k, a));
    TRY(turn_heads_back(k, a, a->d_q, a->d_q_rope, a->H, a->q_norm_weight, a->q, a->rstd_q, a->dq_norm_weight, a->d_q_norm));
    TRY(turn_heads_back(k, a, a->d_k, a->d_k_rope, a->G, a->k_norm_weight, a->k, a->rstd_k, a->dk_norm_weight, a->d_k_norm));
    TRY(ck_project_back(k, &q_of, ROWS(a->d_q, q), a->ln1, a->d_ln1, more, a->dq_weight, a->dq_bias, a->accumulate, R));
    TRY(ck_project_back(k, &k_of, ROWS(a->d_k, kv), a->ln1, a->d_ln1, true, a->dk_weight, a->dk_bias, a->accumulate, R));
    TRY(ck_project_back(k, &v_of, ROWS(a->d_v, kv), a->ln1, a->d_ln1, true, a->dv_weight, a->dv_bias, a->accumulate, R));
    TRY(ck_norm_rows_back(k, &ln1, dx, a->dln1_weight, a->dln1_bias, ROWS(a->d_ln1, C), ck_merged(a->x), a->accumulate, R, C));
    return ck_sum_of(k, dx, dx, skip, R, C);
}

static ck_status
backward(const ck_kernels *k, struct ck_decoder_bwd *a)
{
    const size_t width = ck_width(k), R = a->B * a->T, row = R * a->C * width, wide = R * a->F * width;
    const size_t all = R * a->H * a->D * width, group = R * a->G * a->D * width;
    const bool own_skip = a->parallel && a->ln2_weight != NULL;
    void *past = NULL; /* where it is not d_residual1 */
    const ck_buffer buffers[] = {
        {&a->d_ln1, row}, {&a->d_v, group}, {&a->d_q_rope, all}, {&a->d_k_rope, group}, {&a->d_attn, all},
        {&a->d_proj, a->post_attn_norm_weight != NULL ? row : CK_NO_BUFFER},
        {&a->d_residual1, a->parallel ? CK_NO_BUFFER : row}, {&past, own_skip ? row : CK_NO_BUFFER},
        {&a->d_ln2, a->ln2_weight != NULL ? row : CK_NO_BUFFER}, {&a->d_gate, a->gate_weight != NULL ? wide : CK_NO_BUFFER},
        {&a->d_up, wide}, {&a->d_act, wide}, {&a->d_down, a->post_mlp_norm_weight != NULL ? row : CK_NO_BUFFER},
    };
    void *block;
    size_t size;

    ck_status status = ck_carve(buffers, sizeof buffers / sizeof *buffers, &block, &size);
    if (status != CK_OK)
        return status;
    if (a->d_q == NULL) a->d_q = a->d_q_rope; /* in place */
    if (a->d_k == NULL) a->d_k = a->d_k_rope;
    const ck_array skip = own_skip ? ROWS(past, a->C) : d_residual1(k, a);
    status = mlp_back(k, a, skip);
    if (status == CK_OK)
        status = attention_back(k, a, skip);
    ck_give(block, size);
    return status;
}

/* What the forward pass of such a layer saves and is not here. */
static ck_status
refuse_kept(const struct ck_decoder_bwd *a)
{
    const struct { bool needed; const void *kept; const char *name; } each[] = {
        {a->layer_norm, a->mean1, "mean1"}, {a->q_norm_weight != NULL, a->q, "q"}, {a->k_norm_weight != NULL, a->k, "k"},
        {a->q_norm_weight != NULL, a->rstd_q, "rstd_q"}, {a->k_norm_weight != NULL, a->rstd_k, "rstd_k"},
        {a->post_attn_norm_weight != NULL, a->proj, "proj"}, {a->post_attn_norm_weight != NULL, a->rstd_attn, "rstd_attn"},
        {!a->parallel, a->residual1, "residual1"}, {a->layer_norm && a->ln2_weight != NULL, a->mean2, "mean2"},
        {a->ln2_weight != NULL, a->rstd2, "rstd2"}, {a->ln2_weight != NULL, a->ln2, "ln2"},
        {a->gate_weight != NULL, a->gate, "gate"}, {a->post_mlp_norm_weight != NULL, a->down, "down"},
        {a->post_mlp_norm_weight != NULL, a->rstd_mlp, "rstd_mlp"}, {!a->parallel, a->ln2_weight, "ln2_weight"},
    };
    for (size_t i = 0; i < sizeof each / sizeof *each; i++)
        if (each[i].needed && each[i].kept == NULL)
            return ck_refuse(CK_BAD_VALUE, "'%s' is needed in such a layer", each[i].name);
    return CK_OK;
}

CK_RUN(decoder_bwd)
{
    struct ck_decoder_bwd own = *a;
    const ck_angles at = {a->cos, a->sin, a->P, a->K, a->positions};
    const struct ck_rope_fwd rope = ck_turn(&at, a->B, a->T, a->H, a->D);
    if (a->activation == CK_NO_ACTIVATION)
        own.activation = CK_SILU;
    TRY(ck_refuse_layer(a->H, a->G, a->scale, a->softcap, a->window, own.activation));
    TRY(refuse_kept(a));
    TRY(ck_refuse_rope(&rope));
    return backward(k, &own);
}

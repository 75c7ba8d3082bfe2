/* The forward pass of a layer, over whole sequences or onto a cache. */
#include "layers/decoder_steps.h"
#include "faults.h"
#include "runtime/run.h"

#include <string.h>

#define ROWS(data, n) ck_rows(data, a->B * a->T, n, ck_width(k))

/* ---- the cache ---- */

/* Where the tokens stand that are appended to a cache: positions [B,T], and lengths [B] when they are in. */
static void
place(const struct ck_decoder_fwd *a, int64_t *positions, int64_t *after)
{
    for (size_t b = 0; b < a->B; b++) {
        after[b] = a->lengths[b] + (a->counts != NULL ? a->counts[b] : (int64_t)a->T);
        for (size_t t = 0; t < a->T; t++) { /* the padding behind the real tokens stands with the last, or at 0 */
            const int64_t position = a->lengths[b] + (int64_t)t;
            positions[b * a->T + t] = position < after[b] ? position : after[b] > 0 ? after[b] - 1 : 0;
        }
    }
}

/* The cache, as its ops take it. */
static struct ck_kv_append
appended(const struct ck_decoder_fwd *a, size_t width)
{
    return (struct ck_kv_append){
        .k_codes = a->k_codes, .k_scales = a->k_scales, .k_biases = a->k_biases,
        .v_codes = a->v_codes, .v_scales = a->v_scales, .v_biases = a->v_biases,
        .k = ck_heads(a->k_rope, a->B, a->T, a->G, a->D, width), .v = ck_heads(a->v, a->B, a->T, a->G, a->D, width),
        .lengths = a->lengths, .counts = a->counts, .table = a->table, .copy_from = a->copy_from, .copy_to = a->copy_to,
        .format = a->format, .group = a->group, .N = a->N, .P = a->L, .G = a->G, .S = a->S, .D = a->D, .W = a->W, .V = a->V,
        .B = a->B, .T = a->T, .M = a->M};
}

static ck_status
attend_cache(const ck_kernels *k, const struct ck_decoder_fwd *a, const int64_t *after)
{
    const size_t width = ck_width(k);
    return ck_kv_attend(k, &(struct ck_kv_attend){
        .y = ck_heads(a->attn, a->B, a->T, a->H, a->D, width), .q = ck_heads(a->q_rope, a->B, a->T, a->H, a->D, width),
        .k_codes = a->k_codes, .k_scales = a->k_scales, .k_biases = a->k_biases,
        .v_codes = a->v_codes, .v_scales = a->v_scales, .v_biases = a->v_biases,
        .table = a->table, .offsets = a->lengths,
        .lengths = CK_FAULT(kv_length_before_append) ? a->lengths : after, .left = a->window - 1, .sinks = a->sinks,
        .scale = a->scale, .softcap = a->softcap,
        .format = a->format, .group = a->group, .N = a->N, .P = a->L, .G = a->G, .S = a->S, .D = a->D, .W = a->W, .V = a->V,
        .B = a->B, .H = a->H, .T = a->T});
}

/* ---- attention and what surrounds it ---- */

static ck_status
attend(const ck_kernels *k, const struct ck_decoder_fwd *a)
{
    const size_t width = ck_width(k);
    return ck_attention_fwd(k, &(struct ck_attention_fwd){
        .y = ck_heads(a->attn, a->B, a->T, a->H, a->D, width), .max = a->max, .sum = a->sum,
        .q = ck_heads(a->q_rope, a->B, a->T, a->H, a->D, width), .k = ck_heads(a->k_rope, a->B, a->T, a->G, a->D, width),
        .v = ck_heads(a->v, a->B, a->T, a->G, a->D, width), .sinks = a->sinks,
        .left = a->window - 1, .right = -1, .causal = true, .scale = a->scale, .softcap = a->softcap,
        .B = a->B, .H = a->H, .G = a->G, .T = a->T, .S = a->T, .D = a->D});
}

/* Heads to where their tokens stand; normed on the way where there is a weight for it. */
static ck_status
turn_heads(const ck_kernels *k, const struct ck_decoder_fwd *a, const ck_angles *at, void *y, const void *x, size_t H,
           const void *weight, float *rstd, void *seen)
{
    const size_t B = a->B, T = a->T, D = a->D, width = ck_width(k);
    const struct ck_rope_fwd how = ck_turn(at, B, T, H, D);
    ck_array used;
    float *taken;

    if (weight == NULL)
        return ck_rotate(k, at, y, x, B, T, H, D);
    if (seen != NULL) /* for the capture alone */
        TRY(ck_norm_rows(k, &(ck_norm){.weight = weight, .eps = a->eps, .offset = a->offset},
                         ck_rows(seen, B * T * H, D, width), ck_rows(x, B * T * H, D, width), B * T * H, D));
    ck_status status = ck_head_weight(k, weight, a->offset, D, &used, &taken);
    if (status == CK_OK)
        status = ck_qk_norm_rope_fwd(k, &(struct ck_qk_norm_rope_fwd){
            .y = ck_heads(y, B, T, H, D, width), .rstd = rstd, .x = ck_heads(x, B, T, H, D, width), .weight = used,
            .cos = how.cos, .sin = how.sin, .positions = how.positions, .eps = a->eps, .N = how.N, .T = T, .D = D,
            .S = how.S, .K = how.K, .P = how.P});
    ck_give(taken, D * sizeof(float));
    return status;
}

/* y = onto + x * weightᵀ + bias, or with a norm between the two; `product` and `normed` are kept where there is a buffer. */
static ck_status
join(const ck_kernels *k, const struct ck_decoder_fwd *a, const ck_projection *of, const ck_norm *behind, ck_array y,
     const void *x, ck_array onto, void *product, void *normed)
{
    const size_t R = a->B * a->T, C = a->C;

    if (behind->weight == NULL) {
        if (product != NULL) /* for the capture alone */
            TRY(ck_project(k, of, ROWS(product, C), x, ck_absent, NULL, CK_NO_ACTIVATION, R));
        return ck_project(k, of, y, x, onto, NULL, CK_NO_ACTIVATION, R);
    }
    const ck_array between = normed != NULL ? ROWS(normed, C) : y;
    TRY(ck_project(k, of, ROWS(product, C), x, ck_absent, NULL, CK_NO_ACTIVATION, R));
    TRY(ck_norm_rows(k, behind, between, ROWS(product, C), R, C));
    return ck_sum_of(k, y, onto, between, R, C);
}

static ck_norm
norm_of(const struct ck_decoder_fwd *a, const void *weight, const void *bias, float *mean, float *rstd)
{
    return (ck_norm){weight, bias, mean, rstd, a->eps, a->offset, a->layer_norm};
}

static ck_status
attention_block(const ck_kernels *k, const struct ck_decoder_fwd *a, const ck_angles *at, const int64_t *after)
{
    const size_t R = a->B * a->T, C = a->C, q = a->H * a->D, kv = a->G * a->D;
    const ck_norm ln1 = norm_of(a, a->ln1_weight, a->ln1_bias, a->mean1, a->rstd1);
    const ck_norm behind = {a->post_attn_norm_weight, NULL, NULL, a->rstd_attn, a->eps, a->offset, false};
    const ck_projection q_of = {a->q_weight, a->q_bias, q, C}, k_of = {a->k_weight, a->k_bias, kv, C};
    const ck_projection v_of = {a->v_weight, a->v_bias, kv, C}, o_of = {a->o_weight, a->o_bias, C, q};

    TRY(ck_norm_rows(k, &ln1, ROWS(a->ln1, C), ck_merged(a->x), R, C));
    TRY(ck_project(k, &q_of, ROWS(a->q, q), a->ln1, ck_absent, NULL, CK_NO_ACTIVATION, R));
    TRY(ck_project(k, &k_of, ROWS(a->k, kv), a->ln1, ck_absent, NULL, CK_NO_ACTIVATION, R));
    TRY(ck_project(k, &v_of, ROWS(a->v, kv), a->ln1, ck_absent, NULL, CK_NO_ACTIVATION, R));
    TRY(turn_heads(k, a, at, a->q_rope, a->q, a->H, a->q_norm_weight, a->rstd_q, a->q_norm));
    if (!CK_FAULT(rope_q_only))
        TRY(turn_heads(k, a, at, a->k_rope, a->k, a->G, a->k_norm_weight, a->rstd_k, a->k_norm));
    else if (a->k_rope != a->k)
        memcpy(a->k_rope, a->k, R * kv * ck_width(k));
    if (after != NULL) {
        const struct ck_kv_append append = appended(a, ck_width(k));
        TRY(ck_kv_append(k, &append));
    }
    TRY(after != NULL ? attend_cache(k, a, after) : attend(k, a));
    if (a->scores != NULL || a->probs != NULL)
        TRY(ck_capture_attention(k, &(ck_attention_stages){
            .q = a->q_rope, .k = a->k_rope, .sinks = a->sinks, .scores = a->scores, .probs = a->probs, .B = a->B, .T = a->T,
            .H = a->H, .G = a->G, .D = a->D, .window = (size_t)a->window, .scale = a->scale, .softcap = a->softcap}));
    return join(k, a, &o_of, &behind, ROWS(a->residual1, C), a->attn,
                CK_FAULT(residual_from_normed) ? ROWS(a->ln1, C) : ck_merged(a->x), a->proj, a->post_attn_norm);
}

static ck_status
mlp_block(const ck_kernels *k, const struct ck_decoder_fwd *a)
{
    const size_t R = a->B * a->T, C = a->C, F = a->F;
    const ck_norm ln2 = norm_of(a, a->ln2_weight, a->ln2_bias, a->mean2, a->rstd2);
    const ck_norm behind = {a->post_mlp_norm_weight, NULL, NULL, a->rstd_mlp, a->eps, a->offset, false};
    const ck_projection gate = {a->gate_weight, a->gate_bias, F, C}, up = {a->up_weight, a->up_bias, F, C};
    const ck_projection down = {a->down_weight, a->down_bias, C, F};
    const void *x = a->ln2_weight != NULL ? a->ln2 : a->ln1;

    if (a->ln2_weight != NULL)
        TRY(ck_norm_rows(k, &ln2, ROWS(a->ln2, C), a->parallel ? ck_merged(a->x) : ROWS(a->residual1, C), R, C));
    if (a->gate_weight != NULL) {
        TRY(ck_project(k, &gate, ROWS(a->gate, F), x, ck_absent, NULL, CK_NO_ACTIVATION, R));
        TRY(ck_project(k, &up, ROWS(a->up, F), x, ck_absent, NULL, CK_NO_ACTIVATION, R));
        TRY(ck_gate(k, a->activation, ROWS(a->act, F), ROWS(a->gate, F), ROWS(a->up, F), R, F));
    }
    else
        TRY(ck_project(k, &up, ROWS(a->act, F), x, ck_absent, a->up, a->activation, R));
    return join(k, a, &down, &behind, ck_merged(a->y), a->act,
                CK_FAULT(residual_dropped) ? ck_absent : ROWS(a->residual1, C), a->down, a->post_mlp_norm);
}

/* ---- the layer ---- */

/* Whether R rows of n floats can be there at all: without an element, sizes are bounded by nothing. */
static bool
may_exist(size_t R, size_t n)
{
    size_t elements;
    return !__builtin_mul_overflow(R, n, &elements) && elements < (size_t)1 << 48;
}

static ck_status
forward(const ck_kernels *k, struct ck_decoder_fwd *a)
{
    const size_t width = ck_width(k), R = a->B * a->T, C = a->C, heads = R * a->H, all = heads * a->D, group = R * a->G * a->D;
    const bool cached = a->lengths != NULL, gated = a->gate_weight != NULL, second = a->ln2_weight != NULL;
    int64_t *placed = NULL, *after = NULL;
    const ck_buffer buffers[] = {
        {(void **)&a->rstd1, R * sizeof(float)}, {&a->ln1, R * C * width}, {&a->q_rope, all * width},
        {&a->k_rope, group * width}, {&a->v, group * width}, {(void **)&a->max, heads * sizeof(float)},
        {(void **)&a->sum, heads * sizeof(float)}, {&a->attn, all * width}, {&a->residual1, R * C * width},
        {&a->proj, a->post_attn_norm_weight != NULL ? R * C * width : CK_NO_BUFFER}, {(void **)&a->rstd2, R * sizeof(float)},
        {&a->ln2, second ? R * C * width : CK_NO_BUFFER}, {&a->gate, gated ? R * a->F * width : CK_NO_BUFFER},
        {&a->up, gated ? R * a->F * width : CK_NO_BUFFER},
        {&a->act, R * a->F * width}, {&a->down, a->post_mlp_norm_weight != NULL ? R * C * width : CK_NO_BUFFER},
        {(void **)&placed, cached ? R * sizeof *placed : 0}, {(void **)&after, cached ? a->B * sizeof *after : 0},
    };
    void *block;
    size_t size;

    if (!may_exist(R, C) || !may_exist(R, a->H * a->D) || !may_exist(R, a->G * a->D) || !may_exist(R, a->H)
        || !may_exist(R, a->F))
        return CK_NO_MEMORY;
    ck_status status = ck_carve(buffers, sizeof buffers / sizeof *buffers, &block, &size);
    if (status != CK_OK)
        return status;
    if (a->q == NULL) a->q = a->q_rope; /* in place */
    if (a->k == NULL) a->k = a->k_rope;
    if (cached)
        place(a, placed, after);
    const ck_angles at = {a->cos, a->sin, a->P, a->K, cached ? placed : a->positions};
    const struct ck_rope_fwd rope = ck_turn(&at, a->B, a->T, a->H, a->D);
    status = ck_refuse_rope(&rope);
    if (status == CK_OK)
        status = attention_block(k, a, &at, cached ? after : NULL);
    if (status == CK_OK)
        status = mlp_block(k, a);
    ck_give(block, size);
    return status;
}

static ck_status
refuse_forward(const struct ck_decoder_fwd *a, size_t width)
{
    const bool cached = a->lengths != NULL;
    TRY(ck_refuse_layer(a->H, a->G, a->scale, a->softcap, a->window, a->activation));
    if (a->ln2_weight == NULL && !a->parallel)
        return ck_refuse(CK_BAD_VALUE, "'ln2_weight' may be absent in a parallel layer alone");
    if (cached != (a->k_codes != NULL) || cached != (a->v_codes != NULL))
        return ck_refuse(CK_BAD_VALUE, "'k_codes', 'v_codes' and 'lengths' make a cache together");
    if (cached && (a->positions != NULL || a->scores != NULL || a->probs != NULL))
        return ck_refuse(CK_BAD_VALUE, "with a cache, positions follow from its lengths, and scores are not captured");
    if (!cached && a->counts != NULL)
        return ck_refuse(CK_BAD_VALUE, "'counts' needs a cache");
    if (!cached)
        return CK_OK;
    struct ck_kv_append append = appended(a, width);
    append.k = append.v = ck_heads(NULL, a->B, a->T, a->G, a->D, width); /* there are none yet */
    return ck_refuse_append(&append);
}

CK_RUN(decoder_fwd)
{
    struct ck_decoder_fwd own = *a;
    if (a->activation == CK_NO_ACTIVATION)
        own.activation = CK_SILU;
    TRY(refuse_forward(&own, ck_width(k)));
    return forward(k, &own);
}

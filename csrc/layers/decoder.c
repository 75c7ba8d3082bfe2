#include "layers/decoder.h"

#include "layers/stages.h"
#include "ops/ops.h"
#include "runtime/run.h"

#include <math.h>

enum { WIDTH = sizeof(float) };

/* Each step of a layer; the first that fails ends it. */
#define TRY(call)                          \
    do {                                   \
        const ck_status status_ = (call);  \
        if (status_ != CK_OK)              \
            return status_;                \
    } while (0)

/* ---- the ops, in the layer's terms ---- */

static ck_status
norm(const ck_kernels *k, ck_array x, const float *weight, double eps, float *y, float *rstd, size_t R, size_t C)
{
    return ck_rms_norm_fwd(k, &(struct ck_rms_norm_fwd){.y = ck_rows(y, R, C, WIDTH), .rstd = rstd, .x = x,
                                                        .weight = ck_rows(weight, 1, C, WIDTH), .eps = eps, .R = R, .C = C});
}

/* The rotary table, [P,K], and the row of it that each token takes: positions [B,T], or row t for all. */
typedef struct {
    const float *cos, *sin;
    size_t P, K;
    const int64_t *positions;
} ck_angles;

static ck_array
places(const ck_angles *at, size_t B, size_t T)
{
    return at->positions != NULL ? ck_rows(at->positions, B, T, sizeof *at->positions) : (ck_array){.data = NULL};
}

/* y [R,N] = x [R,K] * weightᵀ + residual, weight [N,K]; the residual may be absent. */
static ck_status
project_onto(const ck_kernels *k, ck_array y, const float *x, const float *weight, ck_array residual, size_t R, size_t K,
             size_t N)
{
    return ck_linear_fwd(k, &(struct ck_linear_fwd){.y = y, .x = ck_rows(x, R, K, WIDTH), .residual = residual,
                                                    .weight = ck_rows(weight, N, K, WIDTH), .R = R, .K = K, .N = N});
}

static ck_status
project(const ck_kernels *k, ck_array y, const float *x, const float *weight, size_t R, size_t K, size_t N)
{
    return project_onto(k, y, x, weight, (ck_array){.data = NULL}, R, K, N);
}

/* How the heads of every token are turned to where the token stands. */
static struct ck_rope_fwd
turn(const ck_angles *at, size_t B, size_t T, size_t H, size_t D)
{
    return (struct ck_rope_fwd){
        .cos = ck_rows(at->cos, at->P, at->K, WIDTH), .sin = ck_rows(at->sin, at->P, at->K, WIDTH),
        .positions = places(at, B, T), .N = B * H, .T = T, .D = D, .S = at->P, .K = at->K, .P = B};
}

static ck_status
rotate(const ck_kernels *k, float *y, const float *x, const ck_angles *at, size_t B, size_t T, size_t H, size_t D)
{
    struct ck_rope_fwd a = turn(at, B, T, H, D);
    a.y = ck_heads(y, B, T, H, D, WIDTH), a.x = ck_heads(x, B, T, H, D, WIDTH);
    return ck_rope_fwd(k, &a);
}

/* And turned back. */
static ck_status
rotate_back(const ck_kernels *k, float *dx, const float *dy, const ck_angles *at, size_t B, size_t T, size_t H, size_t D)
{
    const struct ck_rope_fwd a = turn(at, B, T, H, D);
    return ck_rope_bwd(k, &(struct ck_rope_bwd){
        .dx = ck_heads(dx, B, T, H, D, WIDTH), .dy = ck_heads(dy, B, T, H, D, WIDTH), .cos = a.cos, .sin = a.sin,
        .positions = a.positions, .N = a.N, .T = T, .D = D, .S = a.S, .K = a.K, .P = B});
}

static ck_status
add(const ck_kernels *k, ck_array out, ck_array x, ck_array y, size_t R, size_t C)
{
    return ck_add_fwd(k, &(struct ck_add_fwd){.out = out, .x = x, .y = y, .alpha = 1.0, .R = R, .C = C});
}

/* What attention would refuse, before any op writes: keys are appended and gradients added to on the way. */
static ck_status
refuse_heads(size_t H, size_t G, double scale)
{
    if (G == 0 ? H != 0 : H % G != 0)
        return ck_refuse(CK_BAD_VALUE, "%zu heads are not a multiple of %zu kv heads", H, G);
    if (!isfinite(scale))
        return ck_refuse(CK_BAD_VALUE, "'scale' must be finite, not %g", scale);
    return CK_OK;
}

/* ---- forward ---- */

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
appended(const struct ck_decoder_fwd *a)
{
    return (struct ck_kv_append){
        .k_codes = a->k_codes, .k_scales = a->k_scales, .k_biases = a->k_biases,
        .v_codes = a->v_codes, .v_scales = a->v_scales, .v_biases = a->v_biases,
        .k = ck_heads(a->k_rope, a->B, a->T, a->G, a->D, WIDTH), .v = ck_heads(a->v, a->B, a->T, a->G, a->D, WIDTH),
        .lengths = a->lengths, .counts = a->counts, .table = a->table, .copy_from = a->copy_from, .copy_to = a->copy_to,
        .format = a->format, .group = a->group, .N = a->N, .P = a->L, .G = a->G, .S = a->S, .D = a->D, .W = a->W, .V = a->V,
        .B = a->B, .T = a->T, .M = a->M};
}

static ck_status
attend_cache(const ck_kernels *k, const struct ck_decoder_fwd *a, const int64_t *after)
{
    return ck_kv_attend(k, &(struct ck_kv_attend){
        .y = ck_heads(a->attn, a->B, a->T, a->H, a->D, WIDTH), .q = ck_heads(a->q_rope, a->B, a->T, a->H, a->D, WIDTH),
        .k_codes = a->k_codes, .k_scales = a->k_scales, .k_biases = a->k_biases,
        .v_codes = a->v_codes, .v_scales = a->v_scales, .v_biases = a->v_biases,
        .table = a->table, .offsets = a->lengths, .lengths = after, .left = -1, .scale = a->scale,
        .format = a->format, .group = a->group, .N = a->N, .P = a->L, .G = a->G, .S = a->S, .D = a->D, .W = a->W, .V = a->V,
        .B = a->B, .H = a->H, .T = a->T});
}

static ck_status
attend(const ck_kernels *k, const struct ck_decoder_fwd *a)
{
    return ck_attention_fwd(k, &(struct ck_attention_fwd){
        .y = ck_heads(a->attn, a->B, a->T, a->H, a->D, WIDTH), .max = a->max, .sum = a->sum,
        .q = ck_heads(a->q_rope, a->B, a->T, a->H, a->D, WIDTH),
        .k = ck_heads(a->k_rope, a->B, a->T, a->G, a->D, WIDTH),
        .v = ck_heads(a->v, a->B, a->T, a->G, a->D, WIDTH),
        .left = -1, .right = -1, .causal = true, .scale = a->scale,
        .B = a->B, .H = a->H, .G = a->G, .T = a->T, .S = a->T, .D = a->D});
}

static ck_status
attention_block(const ck_kernels *k, const struct ck_decoder_fwd *a, const ck_angles *at, const int64_t *after)
{
    const size_t B = a->B, T = a->T, R = B * T, C = a->C, H = a->H, G = a->G, D = a->D;

    TRY(norm(k, ck_merged(a->x), a->ln1_weight, a->eps, a->ln1, a->rstd1, R, C));
    TRY(project(k, ck_rows(a->q, R, H * D, WIDTH), a->ln1, a->q_weight, R, C, H * D));
    TRY(project(k, ck_rows(a->k, R, G * D, WIDTH), a->ln1, a->k_weight, R, C, G * D));
    TRY(project(k, ck_rows(a->v, R, G * D, WIDTH), a->ln1, a->v_weight, R, C, G * D));
    TRY(rotate(k, a->q_rope, a->q, at, B, T, H, D));
    TRY(rotate(k, a->k_rope, a->k, at, B, T, G, D));
    if (after != NULL) {
        const struct ck_kv_append append = appended(a);
        TRY(ck_kv_append(k, &append));
    }
    TRY(after != NULL ? attend_cache(k, a, after) : attend(k, a));
    if (a->scores != NULL || a->probs != NULL)
        TRY(ck_capture_attention(&(ck_attention_stages){.q = a->q_rope, .k = a->k_rope, .scores = a->scores,
                                                        .probs = a->probs, .B = B, .T = T, .H = H, .G = G, .D = D,
                                                        .scale = a->scale}));
    if (a->proj != NULL) /* for the capture alone */
        TRY(project(k, ck_rows(a->proj, R, C, WIDTH), a->attn, a->o_weight, R, H * D, C));
    return project_onto(k, ck_rows(a->residual1, R, C, WIDTH), a->attn, a->o_weight, ck_merged(a->x), R, H * D, C);
}

static ck_status
mlp_block(const ck_kernels *k, const struct ck_decoder_fwd *a)
{
    const size_t R = a->B * a->T, C = a->C, F = a->F;

    TRY(norm(k, ck_rows(a->residual1, R, C, WIDTH), a->ln2_weight, a->eps, a->ln2, a->rstd2, R, C));
    TRY(project(k, ck_rows(a->gate, R, F, WIDTH), a->ln2, a->gate_weight, R, C, F));
    TRY(project(k, ck_rows(a->up, R, F, WIDTH), a->ln2, a->up_weight, R, C, F));
    TRY(ck_swiglu_fwd(k, &(struct ck_swiglu_fwd){.y = ck_rows(a->act, R, F, WIDTH),
                                                 .gate = ck_rows(a->gate, R, F, WIDTH),
                                                 .up = ck_rows(a->up, R, F, WIDTH), .R = R, .F = F}));
    if (a->down != NULL) /* for the capture alone */
        TRY(project(k, ck_rows(a->down, R, C, WIDTH), a->act, a->down_weight, R, F, C));
    return project_onto(k, ck_merged(a->y), a->act, a->down_weight, ck_rows(a->residual1, R, C, WIDTH), R, F, C);
}

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
    const size_t R = a->B * a->T, C = a->C, heads = R * a->H, all = heads * a->D, group = R * a->G * a->D;
    const bool cached = a->lengths != NULL;
    int64_t *placed = NULL, *after = NULL;
    const ck_buffer buffers[] = {
        {(void **)&a->rstd1, R * WIDTH}, {(void **)&a->ln1, R * C * WIDTH},
        {(void **)&a->q_rope, all * WIDTH}, {(void **)&a->k_rope, group * WIDTH}, {(void **)&a->v, group * WIDTH},
        {(void **)&a->max, heads * WIDTH}, {(void **)&a->sum, heads * WIDTH}, {(void **)&a->attn, all * WIDTH},
        {(void **)&a->residual1, R * C * WIDTH}, {(void **)&a->rstd2, R * WIDTH}, {(void **)&a->ln2, R * C * WIDTH},
        {(void **)&a->gate, R * a->F * WIDTH}, {(void **)&a->up, R * a->F * WIDTH}, {(void **)&a->act, R * a->F * WIDTH},
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
    const struct ck_rope_fwd rope = turn(&at, a->B, a->T, a->H, a->D);
    status = ck_refuse_rope(&rope);
    if (status == CK_OK)
        status = attention_block(k, a, &at, cached ? after : NULL);
    if (status == CK_OK)
        status = mlp_block(k, a);
    ck_give(block, size);
    return status;
}

static ck_status
refuse_forward(const struct ck_decoder_fwd *a)
{
    const bool cached = a->lengths != NULL;
    TRY(refuse_heads(a->H, a->G, a->scale));
    if (cached != (a->k_codes != NULL) || cached != (a->v_codes != NULL))
        return ck_refuse(CK_BAD_VALUE, "'k_codes', 'v_codes' and 'lengths' make a cache together");
    if (cached && (a->positions != NULL || a->scores != NULL || a->probs != NULL))
        return ck_refuse(CK_BAD_VALUE, "with a cache, positions follow from its lengths, and scores are not captured");
    if (!cached && a->counts != NULL)
        return ck_refuse(CK_BAD_VALUE, "'counts' needs a cache");
    if (!cached)
        return CK_OK;
    struct ck_kv_append append = appended(a);
    append.k = append.v = ck_heads(NULL, a->B, a->T, a->G, a->D, WIDTH); /* there are none yet */
    return ck_refuse_append(&append);
}

CK_RUN(decoder_fwd)
{
    struct ck_decoder_fwd own = *a;
    TRY(refuse_forward(a));
    return forward(k, &own);
}

/* ---- backward ---- */

/* dx [R,K] and dweight [N,K] of y [R,N] = x * weightᵀ; dx is overwritten, or added to: `more` is another use of x. */
static ck_status
project_back(const ck_kernels *k, ck_array dy, const float *x, const float *weight, float *dx, bool more, float *dweight,
             size_t R, size_t K, size_t N, bool accumulate)
{
    const ck_array rows = ck_rows(dx, R, K, WIDTH);
    TRY(ck_gemm(k, &(struct ck_gemm){.c = rows, .a = dy, .b = ck_rows(weight, N, K, WIDTH),
                                     .residual = more ? rows : (ck_array){.data = NULL}, .B = 1, .M = R, .N = K, .K = N}));
    return ck_linear_bwd(k, &(struct ck_linear_bwd){.dweight = ck_rows(dweight, N, K, WIDTH), .dy = dy,
                                                    .x = ck_rows(x, R, K, WIDTH), .accumulate = accumulate, .R = R, .K = K,
                                                    .N = N});
}

static ck_status
norm_back(const ck_kernels *k, ck_array dx, float *dweight, const float *dy, ck_array x, const float *weight,
          const float *rstd, size_t R, size_t C, bool accumulate)
{
    return ck_rms_norm_bwd(k, &(struct ck_rms_norm_bwd){.dx = dx, .dweight = ck_rows(dweight, 1, C, WIDTH), .dy = ck_rows(dy, R, C, WIDTH),
                                                        .x = x, .weight = ck_rows(weight, 1, C, WIDTH), .rstd = rstd,
                                                        .accumulate = accumulate, .R = R, .C = C});
}

/* From dy to d_residual1. */
static ck_status
mlp_back(const ck_kernels *k, const struct ck_decoder_bwd *a)
{
    const size_t R = a->B * a->T, C = a->C, F = a->F;
    const ck_array dy = ck_merged(a->dy), d_gate = ck_rows(a->d_gate, R, F, WIDTH), d_up = ck_rows(a->d_up, R, F, WIDTH);
    const ck_array d_residual1 = ck_rows(a->d_residual1, R, C, WIDTH);

    TRY(project_back(k, dy, a->act, a->down_weight, a->d_act, false, a->ddown_weight, R, F, C, a->accumulate));
    TRY(ck_swiglu_bwd(k, &(struct ck_swiglu_bwd){.dgate = d_gate, .dup = d_up, .dy = ck_rows(a->d_act, R, F, WIDTH),
                                                 .gate = ck_rows(a->gate, R, F, WIDTH),
                                                 .up = ck_rows(a->up, R, F, WIDTH), .R = R, .F = F}));
    TRY(project_back(k, d_gate, a->ln2, a->gate_weight, a->d_ln2, false, a->dgate_weight, R, C, F, a->accumulate));
    TRY(project_back(k, d_up, a->ln2, a->up_weight, a->d_ln2, true, a->dup_weight, R, C, F, a->accumulate));
    TRY(norm_back(k, d_residual1, a->dln2_weight, a->d_ln2, ck_rows(a->residual1, R, C, WIDTH), a->ln2_weight, a->rstd2,
                  R, C, a->accumulate));
    return add(k, d_residual1, d_residual1, dy, R, C);
}

/* From d_attn to d_q_rope, d_k_rope, d_v. */
static ck_status
attend_back(const ck_kernels *k, const struct ck_decoder_bwd *a)
{
    const size_t B = a->B, T = a->T, H = a->H, G = a->G, D = a->D;
    TRY(ck_attention_bwd(k, &(struct ck_attention_bwd){
        .dq = ck_heads(a->d_q_rope, B, T, H, D, WIDTH), .dk = ck_heads(a->d_k_rope, B, T, G, D, WIDTH),
        .dv = ck_heads(a->d_v, B, T, G, D, WIDTH), .dy = ck_heads(a->d_attn, B, T, H, D, WIDTH),
        .q = ck_heads(a->q_rope, B, T, H, D, WIDTH), .k = ck_heads(a->k_rope, B, T, G, D, WIDTH),
        .v = ck_heads(a->v, B, T, G, D, WIDTH), .y = ck_heads(a->attn, B, T, H, D, WIDTH),
        .max = a->max, .sum = a->sum, .left = -1, .right = -1, .causal = true, .scale = a->scale,
        .B = B, .H = H, .G = G, .T = T, .S = T, .D = D}));
    if (a->d_scores == NULL && a->d_probs == NULL)
        return CK_OK;
    return ck_capture_attention(&(ck_attention_stages){.q = a->q_rope, .k = a->k_rope, .v = a->v, .d_attn = a->d_attn,
                                                       .d_scores = a->d_scores, .d_probs = a->d_probs, .B = B, .T = T,
                                                       .H = H, .G = G, .D = D, .scale = a->scale});
}

/* From d_residual1 to dx. */
static ck_status
attention_back(const ck_kernels *k, const struct ck_decoder_bwd *a)
{
    const size_t B = a->B, T = a->T, R = B * T, C = a->C, H = a->H, G = a->G, D = a->D;
    const ck_array d_residual1 = ck_rows(a->d_residual1, R, C, WIDTH), dx = ck_merged(a->dx);
    const ck_angles at = {a->cos, a->sin, a->P, a->K, a->positions};

    TRY(project_back(k, d_residual1, a->attn, a->o_weight, a->d_attn, false, a->do_weight, R, H * D, C, a->accumulate));
    TRY(attend_back(k, a));
    TRY(rotate_back(k, a->d_q, a->d_q_rope, &at, B, T, H, D));
    TRY(rotate_back(k, a->d_k, a->d_k_rope, &at, B, T, G, D));
    TRY(project_back(k, ck_rows(a->d_q, R, H * D, WIDTH), a->ln1, a->q_weight, a->d_ln1, false, a->dq_weight, R, C, H * D,
                     a->accumulate));
    TRY(project_back(k, ck_rows(a->d_k, R, G * D, WIDTH), a->ln1, a->k_weight, a->d_ln1, true, a->dk_weight, R, C, G * D,
                     a->accumulate));
    TRY(project_back(k, ck_rows(a->d_v, R, G * D, WIDTH), a->ln1, a->v_weight, a->d_ln1, true, a->dv_weight, R, C, G * D,
                     a->accumulate));
    TRY(norm_back(k, dx, a->dln1_weight, a->d_ln1, ck_merged(a->x), a->ln1_weight, a->rstd1, R, C, a->accumulate));
    return add(k, dx, dx, d_residual1, R, C);
}

static ck_status
backward(const ck_kernels *k, struct ck_decoder_bwd *a)
{
    const size_t R = a->B * a->T, C = a->C, all = R * a->H * a->D, group = R * a->G * a->D;
    const ck_buffer buffers[] = {
        {(void **)&a->d_ln1, R * C * WIDTH}, {(void **)&a->d_v, group * WIDTH}, {(void **)&a->d_q_rope, all * WIDTH},
        {(void **)&a->d_k_rope, group * WIDTH}, {(void **)&a->d_attn, all * WIDTH},
        {(void **)&a->d_residual1, R * C * WIDTH}, {(void **)&a->d_ln2, R * C * WIDTH},
        {(void **)&a->d_gate, R * a->F * WIDTH}, {(void **)&a->d_up, R * a->F * WIDTH},
        {(void **)&a->d_act, R * a->F * WIDTH},
    };
    void *block;
    size_t size;

    ck_status status = ck_carve(buffers, sizeof buffers / sizeof *buffers, &block, &size);
    if (status != CK_OK)
        return status;
    if (a->d_q == NULL) a->d_q = a->d_q_rope; /* in place */
    if (a->d_k == NULL) a->d_k = a->d_k_rope;
    status = mlp_back(k, a);
    if (status == CK_OK)
        status = attention_back(k, a);
    ck_give(block, size);
    return status;
}

CK_RUN(decoder_bwd)
{
    struct ck_decoder_bwd own = *a;
    const ck_angles at = {a->cos, a->sin, a->P, a->K, a->positions};
    const struct ck_rope_fwd rope = turn(&at, a->B, a->T, a->H, a->D);
    TRY(refuse_heads(a->H, a->G, a->scale));
    TRY(ck_refuse_rope(&rope));
    return backward(k, &own);
}

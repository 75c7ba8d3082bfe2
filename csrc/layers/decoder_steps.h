#ifndef CK_DECODER_STEPS_H
#define CK_DECODER_STEPS_H
/* The ops as a layer calls them: what forward and backward share.  `width`: bytes of an element of the call's dtype. */
#include "layers/decoder.h"
#include "layers/stages.h"
#include "ops/ops.h"

/* Each step of a layer; the first that fails ends it. */
#define TRY(call)                         \
    do {                                  \
        const ck_status status_ = (call); \
        if (status_ != CK_OK)             \
            return status_;               \
    } while (0)

static const ck_array ck_absent = {.data = NULL};

static inline size_t
ck_width(const ck_kernels *k)
{
    return k->dtype == CK_F32 ? sizeof(float) : sizeof(ck_bf16);
}

/* A norm: its parameters, which kind, and what it saves. */
typedef struct {
    const void *weight, *bias;
    float *mean, *rstd;
    double eps, offset;
    bool layer_norm;
} ck_norm;

ck_status ck_norm_rows(const ck_kernels *k, const ck_norm *of, ck_array y, ck_array x, size_t R, size_t C);

/* dx is overwritten; the gradients of weight and bias, where they are wanted, overwritten or added to. */
ck_status ck_norm_rows_back(const ck_kernels *k, const ck_norm *of, ck_array dx, void *dweight, void *dbias, ck_array dy,
                            ck_array x, bool accumulate, size_t R, size_t C);

/* The weight of a norm of heads as floats, `offset` added: in `*taken`, D floats to be given back, or where it lies. */
ck_status ck_head_weight(const ck_kernels *k, const void *weight, double offset, size_t D, ck_array *used, float **taken);

/* A projection: weight [N,K], bias [N] or absent. */
typedef struct {
    const void *weight, *bias;
    size_t N, K;
} ck_projection;

/* y [R,N] = activation(x [R,K] * weightᵀ + bias) + residual; `pre`, where wanted, what the activation is of. */
ck_status ck_project(const ck_kernels *k, const ck_projection *of, ck_array y, const void *x, ck_array residual, void *pre,
                     int64_t activation, size_t R);

/* Its gradients: dx, which is overwritten, or added to where `more` than this uses x; those of weight and bias. */
ck_status ck_project_back(const ck_kernels *k, const ck_projection *of, ck_array dy, const void *x, void *dx, bool more,
                          void *dweight, void *dbias, bool accumulate, size_t R);

/* act [R,F] = activation(gate) * up, and its gradients. */
ck_status ck_gate(const ck_kernels *k, int64_t activation, ck_array y, ck_array gate, ck_array up, size_t R, size_t F);
ck_status ck_gate_back(const ck_kernels *k, int64_t activation, ck_array dgate, ck_array dup, ck_array dy, ck_array gate,
                       ck_array up, size_t R, size_t F);

/* The rotary table, [P,K], and the row of it that each token takes: positions [B,T], or row t for all. */
typedef struct {
    const float *cos, *sin;
    size_t P, K;
    const int64_t *positions;
} ck_angles;

/* How the heads of every token are turned to where the token stands: all but y and x. */
struct ck_rope_fwd ck_turn(const ck_angles *at, size_t B, size_t T, size_t H, size_t D);

ck_status ck_rotate(const ck_kernels *k, const ck_angles *at, void *y, const void *x, size_t B, size_t T, size_t H, size_t D);
ck_status ck_rotate_back(const ck_kernels *k, const ck_angles *at, void *dx, const void *dy, size_t B, size_t T, size_t H,
                         size_t D);

ck_status ck_sum_of(const ck_kernels *k, ck_array out, ck_array x, ck_array y, size_t R, size_t C);

/* What attention would refuse, and an activation that no MLP has, before any op writes. */
ck_status ck_refuse_layer(size_t H, size_t G, double scale, double softcap, int64_t window, int64_t activation);
#endif

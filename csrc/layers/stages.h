#ifndef CK_STAGES_H
#define CK_STAGES_H
/* What layers share: buffers that the caller did not give, views of heads, and stages that exist for capture alone. */
#include "ops/op.h"

/* One buffer of a layer: where its pointer stands, and its size in bytes; CK_NO_BUFFER: it stays as it is. */
#define CK_NO_BUFFER SIZE_MAX
typedef struct {
    void **at;
    size_t size;
} ck_buffer;

/* Give every buffer that is NULL its part of one block of the arena. */
ck_status ck_carve(const ck_buffer *buffers, size_t n, void **block, size_t *size);

/* [B,T,H,D] in memory, seen as [B,H,T,D]. */
ck_array ck_heads(const void *data, size_t B, size_t T, size_t H, size_t D, size_t width);

/* The same array with its leading axes as one, where they lie so: elementwise ops then take it as one row. */
ck_array ck_merged(ck_array x);

/* Scores, probabilities and their gradients of causal attention, as the equations say, in double. */
typedef struct {
    const void *q, *k, *v;          /* [B,T,H,D], [B,T,G,D] twice, of the call's dtype; v for gradients only */
    const void *d_attn;             /* [B,T,H,D], for gradients only */
    const float *sinks;             /* [H], or NULL */
    float *scores, *probs;          /* [B,H,T,T], or NULL */
    float *d_scores, *d_probs;      /* [B,H,T,T], or NULL */
    size_t B, T, H, G, D;
    size_t window;                  /* keys that a query sees; 0: all */
    double scale, softcap;
} ck_attention_stages;
ck_status ck_capture_attention(const ck_kernels *k, const ck_attention_stages *a);
#endif

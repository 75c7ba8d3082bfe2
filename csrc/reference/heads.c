#include "reference/reference.h"
#include "ops/heads.h"

/* Every token of a task: item b of the batch, place t. */
#define CK_EACH_TOKEN(b, t)                                                                                   \
    for (size_t i = task.begin; i < task.end; i++)                                                            \
        for (size_t b = i / ck_heads_blocks(a->T), t = i % ck_heads_blocks(a->T) * CK_HEADS_T, left = CK_HEADS_T; \
             left > 0 && t < a->T; t++, left--)

static elem *at(const ck_array *x, size_t row, size_t d) { return (elem *)ck_row(x, row) + d; }

CK_KERNEL(split_qkv_fwd)
{
    const size_t H = (size_t)a->H, G = (size_t)a->G, D = (size_t)a->D;
    CK_EACH_TOKEN(b, t)
        for (size_t d = 0; d < D; d++) {
            for (size_t h = 0; h < H; h++)
                *at(&a->q, (b * H + h) * a->T + t, d) = *at(&a->qkv, b * a->T + t, h * D + d);
            for (size_t g = 0; g < G; g++)
                *at(&a->k, (b * G + g) * a->T + t, d) = *at(&a->qkv, b * a->T + t, (H + g) * D + d);
            for (size_t g = 0; g < G; g++)
                *at(&a->v, (b * G + g) * a->T + t, d) = *at(&a->qkv, b * a->T + t, (H + G + g) * D + d);
        }
}

CK_KERNEL(split_qkv_bwd)
{
    const size_t H = (size_t)a->H, G = (size_t)a->G, D = (size_t)a->D;
    CK_EACH_TOKEN(b, t)
        for (size_t d = 0; d < D; d++) {
            for (size_t h = 0; h < H; h++)
                *at(&a->dqkv, b * a->T + t, h * D + d) = *at(&a->dq, (b * H + h) * a->T + t, d);
            for (size_t g = 0; g < G; g++)
                *at(&a->dqkv, b * a->T + t, (H + g) * D + d) = *at(&a->dk, (b * G + g) * a->T + t, d);
            for (size_t g = 0; g < G; g++)
                *at(&a->dqkv, b * a->T + t, (H + G + g) * D + d) = *at(&a->dv, (b * G + g) * a->T + t, d);
        }
}

/* to [B,T,H,D] from [B,H,T,D], or the reverse. */
#define CK_SWAP(to, to_row, from, from_row)                            \
    CK_EACH_TOKEN(b, t)                                                \
        for (size_t h = 0; h < a->H; h++)                              \
            for (size_t d = 0; d < a->D; d++)                          \
                *at(&a->to, to_row, d) = *at(&a->from, from_row, d)
#define CK_BHT ((b * a->H + h) * a->T + t)
#define CK_BTH ((b * a->T + t) * a->H + h)

CK_KERNEL(heads_to_tokens_fwd)
{
    CK_SWAP(y, CK_BTH, x, CK_BHT);
}

CK_KERNEL(heads_to_tokens_bwd)
{
    CK_SWAP(dx, CK_BHT, dy, CK_BTH);
}

CK_KERNEL(tokens_to_heads_fwd)
{
    CK_SWAP(y, CK_BHT, x, CK_BTH);
}

CK_KERNEL(tokens_to_heads_bwd)
{
    CK_SWAP(dx, CK_BTH, dy, CK_BHT);
}

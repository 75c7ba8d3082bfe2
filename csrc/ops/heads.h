#ifndef CK_HEADS_H
#define CK_HEADS_H
#include "ops/op.h"
/*
 * heads -- between the rows of tokens that projections read and write, and the rows of heads that attention does
 *
 *     split_qkv          q[b,h,t,d] = qkv[b,t, h D + d]                 h of H
 *                        k[b,g,t,d] = qkv[b,t, (H + g) D + d]           g of G
 *                        v[b,g,t,d] = qkv[b,t, (H + G + g) D + d]       C = (H + 2G) D
 *                        dqkv joins dq, dk, dv the same way
 *
 *     heads_to_tokens    y[b,t,h,d]  = x[b,h,t,d]
 *                        dx[b,h,t,d] = dy[b,t,h,d]
 *
 *     tokens_to_heads    y[b,h,t,d]  = x[b,t,h,d]
 *                        dx[b,t,h,d] = dy[b,h,t,d]
 *
 * Copies, bit for bit: NaN keep what they carry.  Nothing is saved for backward, and nothing is in place.  Results may
 * have any strides: q written with the strides of [B,T,H,D] is the token-major split.
 * Refused before anything is written: C other than (H + 2G) D.
 */
#define CK_ARGS_split_qkv_fwd(_)               \
    _(OUT,  elem,    q,     "B* H T D")        \
    _(OUT,  elem,    k,     "B* G T D")        \
    _(OUT,  elem,    v,     "B* G T D")        \
    _(IN,   elem,    qkv,   "B* T C")          \
    _(INT,  int64_t, H,     "")                \
    _(INT,  int64_t, G,     "")                \
    _(INT,  int64_t, D,     "")                \
    _(SIZE, size_t,  B,     "")                \
    _(SIZE, size_t,  T,     "")                \
    _(SIZE, size_t,  C,     "")
CK_DECLARE(split_qkv_fwd)

#define CK_ARGS_split_qkv_bwd(_)               \
    _(OUT,  elem,    dqkv,  "B* T C")          \
    _(INT,  int64_t, C,     "")                \
    _(INT,  int64_t, H,     "")                \
    _(INT,  int64_t, G,     "")                \
    _(INT,  int64_t, D,     "")                \
    _(IN,   elem,    dq,    "B* H T D")        \
    _(IN,   elem,    dk,    "B* G T D")        \
    _(IN,   elem,    dv,    "B* G T D")        \
    _(SIZE, size_t,  B,     "")                \
    _(SIZE, size_t,  T,     "")
CK_DECLARE(split_qkv_bwd)

#define CK_ARGS_heads_to_tokens_fwd(_)         \
    _(OUT,  elem,    y,     "B* T H D")        \
    _(IN,   elem,    x,     "B* H T D")        \
    _(SIZE, size_t,  B,     "")                \
    _(SIZE, size_t,  H,     "")                \
    _(SIZE, size_t,  T,     "")                \
    _(SIZE, size_t,  D,     "")
CK_DECLARE(heads_to_tokens_fwd)

#define CK_ARGS_heads_to_tokens_bwd(_)         \
    _(OUT,  elem,    dx,    "B* H T D")        \
    _(IN,   elem,    dy,    "B* T H D")        \
    _(SIZE, size_t,  B,     "")                \
    _(SIZE, size_t,  H,     "")                \
    _(SIZE, size_t,  T,     "")                \
    _(SIZE, size_t,  D,     "")
CK_DECLARE(heads_to_tokens_bwd)

#define CK_ARGS_tokens_to_heads_fwd(_)         \
    _(OUT,  elem,    y,     "B* H T D")        \
    _(IN,   elem,    x,     "B* T H D")        \
    _(SIZE, size_t,  B,     "")                \
    _(SIZE, size_t,  H,     "")                \
    _(SIZE, size_t,  T,     "")                \
    _(SIZE, size_t,  D,     "")
CK_DECLARE(tokens_to_heads_fwd)

#define CK_ARGS_tokens_to_heads_bwd(_)         \
    _(OUT,  elem,    dx,    "B* T H D")        \
    _(IN,   elem,    dy,    "B* H T D")        \
    _(SIZE, size_t,  B,     "")                \
    _(SIZE, size_t,  H,     "")                \
    _(SIZE, size_t,  T,     "")                \
    _(SIZE, size_t,  D,     "")
CK_DECLARE(tokens_to_heads_bwd)

/*
 * Item i of a task is CK_HEADS_T tokens with all their heads: block i % blocks of item i / blocks of the batch.  So many
 * that the rows of a head, which lie end to end on one side, make a stretch worth reading: with eight of them, 512 bytes
 * each, it took 1.4 times as long.
 */
enum { CK_HEADS_T = 32 };

static inline size_t
ck_heads_blocks(size_t T)
{
    return T / CK_HEADS_T + (T % CK_HEADS_T != 0);
}
#endif

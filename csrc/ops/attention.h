#ifndef CK_ATTENTION_H
#define CK_ATTENTION_H
#include "ops/kv_store.h"
/*
 * attention -- scaled dot-product attention                   (Vaswani et al. 2017, arXiv:1706.03762), without a [T,S]
 * array in memory (Dao 2023, arXiv:2307.08691)
 *
 * Head h reads kv head g = h / (H / G).  Query t of item b stands at position p = offset + t, where offset is
 * offsets[b], or q_offset for all; key s stands at s.  Key s is seen by query t when
 *
 *     s < lengths[b] (S where absent),  s <= p if causal,  p - left <= s if left >= 0,  s <= p + right if right >= 0,
 *     attn_mask[b,h,t,s] is true (boolean) or above -inf (float)
 *
 *     x[t,s]   = scale * sum_d q[t,d] * k[s,d]                 chains of CK_ATTENTION_CHAIN, d ascending, added in order
 *     x[t,s]   = softcap * tanh(x[t,s] / softcap)              if softcap > 0
 *     x[t,s]   = x[t,s] + attn_mask[t,s]                       if there is a float mask
 *     max[t]   = max over the seen s of x[t,s], and sinks[h]
 *     sum[t]   = sum over the seen s of exp(x[t,s] - max[t]), plus exp(sinks[h] - max[t])
 *     y[t,:]   = sum over the seen s of exp(x[t,s] - max[t]) * v[s,:] / sum[t];    lse[t] = max[t] + log(sum[t])
 *
 *     p[t,s]   = exp(x[t,s] - max[t]) / sum[t]                 0 for a key that is not seen
 *     dot[t]   = sum_d dy[t,d] * y[t,d] - dlse[t]
 *     dx[t,s]  = p[t,s] * (sum_d dy[t,d] * v[s,d] - dot[t])    times 1 - tanh^2 if softcap > 0
 *     dq[t,:]  = scale * sum_s dx[t,s] * k[s,:]
 *     dk[s,:]  = scale * sum_{h of g, t} dx[t,s] * q[t,:];     dv[s,:] = sum_{h of g, t} p[t,s] * dy[t,:]
 *     dsinks[h]= - sum_{b,t} exp(sinks[h] - max[t]) / sum[t] * dot[t]      added to what is there when `accumulate`
 *
 * A key that is not seen contributes nothing, not even a NaN of its k or v; keys from lengths[b] on are never read.  A
 * query that sees nothing gives y = 0 and lse = -inf (sinks[h] with a sink), and no gradient.
 *
 * Where `cache` is given, by a C caller, keys and values are rows of that store (ops/kv_store.h), as float32 numbers, of
 * which an item holds at most S, and `k` and `v` are absent.
 *
 * Saved for backward: max and sum, apart (their logarithm added up would lose ulps at large scores), and y.
 *
 * Order of sums, which makes a query's bits the same alone, in a batch, in a chunk, and on any number of threads: keys in
 * partitions of CK_ATTENTION_KEYS anchored at key 0, each with a maximum, a sum (16 lanes over s, then by halves) and a
 * weighted sum of v (a chain of fused multiply-adds for every CK_ATTENTION_TERMS keys, the chains added in order);
 * partitions in which the query sees nothing left out; the others merged ascending.  dq: such chains of keys from key 0,
 * added in order.  dk, dv: blocks of CK_ATTENTION_QUERIES queries from query 0, head by head, each a chain, added in order.
 */
#define CK_ARGS_attention_fwd(_)                \
    _(OUT,      elem,    y,          "B H T D") \
    _(OPT_OUTV, float,   max,        "B H T")   \
    _(OPT_OUTV, float,   sum,        "B H T")   \
    _(OPT_OUTV, float,   lse,        "B H T")   \
    _(IN,       elem,    q,          "B H T D") \
    _(IN,       elem,    k,          "B G S D") \
    _(IN,       elem,    v,          "B G S D") \
    _(MASK,     elem,    attn_mask,  "B H T S") \
    _(OPT_INV,  float,   sinks,      "H")       \
    _(OPT_INV,  int64_t, offsets,    "B")       \
    _(OPT_INV,  int64_t, lengths,    "B")       \
    _(INT,      int64_t, q_offset,   "")        \
    _(INT,      int64_t, left,       "")        \
    _(INT,      int64_t, right,      "")        \
    _(FLAG,     int,     causal,     "")        \
    _(REAL,     double,  scale,      "")        \
    _(REAL,     double,  softcap,    "")        \
    _(SIZE,     size_t,  B,          "")        \
    _(SIZE,     size_t,  H,          "")        \
    _(SIZE,     size_t,  G,          "")        \
    _(SIZE,     size_t,  T,          "")        \
    _(SIZE,     size_t,  S,          "")        \
    _(SIZE,     size_t,  D,          "")        \
    _(OWN,      ck_kv_cache, cache,  "")
CK_DECLARE(attention_fwd)

#define CK_ARGS_attention_bwd(_)                \
    _(OUT,      elem,    dq,         "B H T D") \
    _(OUT,      elem,    dk,         "B G S D") \
    _(OUT,      elem,    dv,         "B G S D") \
    _(OPT_OUTV, float,   dsinks,     "H")       \
    _(IN,       elem,    q,          "B H T D") \
    _(IN,       elem,    k,          "B G S D") \
    _(IN,       elem,    v,          "B G S D") \
    _(IN,       elem,    y,          "B H T D") \
    _(IN,       elem,    dy,         "B H T D") \
    _(OPT_INV,  float,   dlse,       "B H T")   \
    _(INV,      float,   max,        "B H T")   \
    _(INV,      float,   sum,        "B H T")   \
    _(MASK,     elem,    attn_mask,  "B H T S") \
    _(OPT_INV,  float,   sinks,      "H")       \
    _(OPT_INV,  int64_t, offsets,    "B")       \
    _(OPT_INV,  int64_t, lengths,    "B")       \
    _(INT,      int64_t, q_offset,   "")        \
    _(INT,      int64_t, left,       "")        \
    _(INT,      int64_t, right,      "")        \
    _(FLAG,     int,     causal,     "")        \
    _(REAL,     double,  scale,      "")        \
    _(REAL,     double,  softcap,    "")        \
    _(FLAG,     int,     accumulate, "")        \
    _(SIZE,     size_t,  B,          "")        \
    _(SIZE,     size_t,  H,          "")        \
    _(SIZE,     size_t,  G,          "")        \
    _(SIZE,     size_t,  T,          "")        \
    _(SIZE,     size_t,  S,          "")        \
    _(SIZE,     size_t,  D,          "")
CK_DECLARE(attention_bwd)

/* Its second pass, dk and dv, has the same arguments. */
struct ck_attention_bwd_keys {
    struct ck_attention_bwd of;
};

enum {
    CK_ATTENTION_CHAIN = 32,      /* terms of an inner product added one by one */
    CK_ATTENTION_TERMS = 64,      /* terms of a weighted sum of rows added one by one */
    CK_ATTENTION_KEYS = 256,      /* of a partition */
    CK_ATTENTION_QUERIES = 64,    /* of a block in dk and dv */
    CK_ATTENTION_KEY_BLOCK = 126, /* of a task of dk and dv: full tiles of six rows */
};

/*
 * Queries of a task, each with all `heads` of its group, so that these share one reading of the keys: about 126 rows,
 * which pays for packing the keys; a multiple of six where it can be, the rows of a tile.
 */
static inline size_t
ck_attention_queries(size_t heads, size_t T)
{
    const size_t n = heads != 0 && heads < 126 ? 126 / heads : 1, most = n >= 6 ? n - n % 6 : n;
    return T != 0 && T < most ? T : most;
}

/* Bytes that a task on `rows` rows needs: eight of its own rows each, four packs of a partition, scores of a tile. */
static inline size_t
ck_attention_scratch(size_t rows, size_t D)
{
    const size_t width = (D + 15) / 16 * 16;
    return (rows * (4 * width + 16) + 4 * CK_ATTENTION_KEYS * width + 6 * (4 * CK_ATTENTION_KEYS + 2 * width) + 1024) * sizeof(float);
}
#endif

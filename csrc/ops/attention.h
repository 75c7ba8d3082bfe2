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
 * Order of sums, which makes a query's bits the same alone, in a batch, in a chunk, and on any number of threads:
 * keys in partitions of CK_ATTENTION_KEYS anchored at key 0, each with a maximum, a sum (16 lanes over s, then by
 * halves) and a weighted sum of v (a chain of fused multiply-adds for every CK_ATTENTION_TERMS keys, the chains
 * added in order); partitions in which the query sees nothing left out; the others merged ascending.  dq: such
 * chains of keys from key 0, added in order.  dk, dv: chains of CK_ATTENTION_TERMS of the rows of a block
 * (ck_attention_queries), which are query by query the heads of a group; added in order over the blocks of a chunk
 * (ck_attention_chunk), and the chunks in order.
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
    _(OWN,      int64_t, plan,       "")        \
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
    _(OWN,      int64_t, plan,       "")        \
    _(SIZE,     size_t,  B,          "")        \
    _(SIZE,     size_t,  H,          "")        \
    _(SIZE,     size_t,  G,          "")        \
    _(SIZE,     size_t,  T,          "")        \
    _(SIZE,     size_t,  S,          "")        \
    _(SIZE,     size_t,  D,          "")
CK_DECLARE(attention_bwd)

/* How the work is cut: the ck_attention_plan that `plan` above points to. */
typedef struct {
    int64_t q, T;    /* its first row of q, y and their gradients, and how many it has */
    int64_t k, S;    /* the same of k and v; keys behind these are not read */
    int64_t offset;  /* position of query 0 */
    int64_t rows;    /* rows of k, of which those from S on get gradients of 0 */
    int64_t stat;    /* head h, query t has its max, sum and lse at stat + h * (T of the call) + t */
    int64_t block;   /* blocks of queries before it; in backward, chunks */
    int64_t part;    /* in backward, floats of the parts before it */
} ck_attention_item;

typedef struct {
    int64_t parts;            /* how many partitions a block has, each a task of its own; 0: a task has a whole block */
    ck_attention_item item[]; /* B, and one more whose `block` is their number */
} ck_attention_plan;

/* What heads and options of any attention must be. */
ck_status ck_attention_refuse(size_t H, size_t G, int64_t left, int64_t right, double scale, double softcap);

/* A plan for B items, to be filled in but for `block` and `part`; NULL where there is no memory.  Its size is `size`. */
ck_attention_plan *ck_attention_new_plan(size_t B, size_t *size);

/* Attention on the items of a plan.  Offsets, lengths, q_offset and S of the call are not asked; T only for `stat`. */
ck_status ck_attention_planned(const ck_kernels *k, const struct ck_attention_fwd *a, ck_attention_plan *plan);
ck_status ck_attention_planned_bwd(const ck_kernels *k, const struct ck_attention_bwd *a, ck_attention_plan *plan);

/* Where partitions are tasks: they leave [rows] maxima, [rows] sums and [rows,width] sums of v, and this merges them. */
struct ck_attention_merge {
    struct ck_attention_fwd of;
    const float *parts;
    size_t part; /* floats of one */
};

/*
 * Backward: chunks of queries give dq, and what they add to dk and dv, [keys of the item, width] each, one behind
 * the other; then the parts of each kv head are added.  Both for as many kv heads at a time as leave the parts
 * small.
 */
struct ck_attention_bwd_queries {
    struct ck_attention_bwd of;
    float *parts;
    double *sinks;  /* [chunks,heads] of the call, or NULL */
    size_t first;   /* chunk */
    int64_t base;   /* floats of the parts before it */
};

struct ck_attention_bwd_keys {
    struct ck_attention_bwd of;
    const float *parts;
    size_t first;   /* kv head, counted over items */
    size_t blocks;  /* of CK_ATTENTION_FOLD keys */
    int64_t base;
};

enum {
    CK_ATTENTION_CHAIN = 32,      /* terms of an inner product added one by one */
    CK_ATTENTION_TERMS = 64,      /* terms of a weighted sum of rows added one by one */
    CK_ATTENTION_KEYS = 256,      /* of a partition */
    CK_ATTENTION_STEP = CK_ATTENTION_KEYS + 16, /* from row to row of scores: they fall in different cache sets */
    CK_ATTENTION_CHUNKS = 8,      /* of an item's queries, at most */
    CK_ATTENTION_FOLD = 64,       /* keys of a task that adds the chunks' parts */
};

/*
 * Queries of a block, each with all `heads` of its group, so that these share one reading of the keys: about 126 rows,
 * which pays for packing the keys; whole tiles, of 14 rows or of 6, where it can be.
 */
static inline size_t
ck_attention_queries(size_t heads, size_t T)
{
    const size_t n = heads != 0 && heads < 126 ? 126 / heads : 1;
    return T != 0 && T < n ? T : n;
}

/* Item and block of queries that come as number i, all blocks of a kv head together. */
typedef struct {
    const ck_attention_item *item;
    size_t b, g, block, blocks, part; /* block of `blocks` */
} ck_attention_place;

static inline ck_attention_place
ck_attention_find(const ck_attention_plan *plan, size_t B, size_t G, size_t i)
{
    const size_t parts = plan->parts != 0 ? (size_t)plan->parts : 1, at = i / parts;
    size_t low = 0, high = B; /* item[low].block * G <= at < item[high].block * G */
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        *((size_t)plan->item[middle].block * G <= at ? &low : &high) = middle;
    }
    const ck_attention_item *item = &plan->item[low];
    const size_t blocks = (size_t)(item[1].block - item->block), left = at - (size_t)item->block * G;
    return (ck_attention_place){item, low, left / blocks, left % blocks, blocks, i % parts};
}

/* Bytes of scratch for a block of `rows` rows. */
static inline size_t
ck_attention_scratch(size_t rows, size_t D)
{
    const size_t width = (D + 15) / 16 * 16, keys = CK_ATTENTION_KEYS * width;
    return (rows * (3 * width + 16 + CK_ATTENTION_STEP + 16) + 2 * keys + 64) * sizeof(float);
}

/* Queries of a chunk: whole blocks, two or more. */
static inline size_t
ck_attention_chunk(size_t heads, size_t T)
{
    const size_t queries = ck_attention_queries(heads, T), blocks = queries != 0 ? (T + queries - 1) / queries : 0;
    const size_t most = (blocks + 1) / 2, chunks = most < CK_ATTENTION_CHUNKS ? most : CK_ATTENTION_CHUNKS;
    return chunks != 0 ? (blocks + chunks - 1) / chunks * queries : 0;
}

/* A chunk's number among all of the call. */
static inline size_t
ck_attention_number(const ck_attention_place *at, size_t G)
{
    return (size_t)at->item->block * G + at->g * at->blocks + at->block;
}

/* Where its parts begin, and the floats of one chunk. */
static inline size_t
ck_attention_floats(const ck_attention_item *item, size_t D)
{
    return 2 * (size_t)item->S * ((D + 15) / 16 * 16);
}

static inline int64_t
ck_attention_part_at(const ck_attention_place *at, size_t D)
{
    return at->item->part + (int64_t)((at->g * at->blocks + at->block) * ck_attention_floats(at->item, D));
}

static inline size_t
ck_attention_bwd_scratch(size_t rows, size_t D)
{
    const size_t width = (D + 15) / 16 * 16;
    return (rows * (5 * width + 32 + 3 * CK_ATTENTION_STEP + 32) + 2 * CK_ATTENTION_KEYS * width + 64) * sizeof(float);
}

/* Floats that a partition leaves for the merge. */
static inline size_t
ck_attention_part(size_t rows, size_t D)
{
    return rows * ((D + 15) / 16 * 16 + 2);
}
#endif

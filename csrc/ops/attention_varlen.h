#ifndef CK_ATTENTION_VARLEN_H
#define CK_ATTENTION_VARLEN_H
#include "ops/attention.h"
/*
 * attention_varlen -- attention on sequences of any lengths, packed one behind the other
 *
 * Sequence b has rows cu_seqlens_q[b] <= i < cu_seqlens_q[b+1] of q and y, and rows cu_seqlens_k[b].. of k and v:
 * the equation, what is saved, the order of every sum and so the bits are those of scaled_dot_product_attention
 * (attention.h) on that sequence alone, no key of another being seen.  Nothing is padded or copied.
 *
 * Query t of a sequence stands at offsets[b] + t; where there are no offsets, at S - T + t, T and S being how many
 * queries and keys it has: the last query stands with the last key, as flash-attention has it since 2.1.
 *
 * Refused, with nothing written: cu_seqlens that do not begin at 0, fall, or do not end at the number of rows.
 */
#define CK_ARGS_attention_varlen_fwd(_)             \
    _(OUT,      elem,    y,            "N H D")     \
    _(OPT_OUTV, float,   max,          "H N")       \
    _(OPT_OUTV, float,   sum,          "H N")       \
    _(OPT_OUTV, float,   lse,          "H N")       \
    _(IN,       elem,    q,            "N H D")     \
    _(IN,       elem,    k,            "M G D")     \
    _(IN,       elem,    v,            "M G D")     \
    _(IN,       ids,     cu_seqlens_q, "L")         \
    _(IN,       ids,     cu_seqlens_k, "L")         \
    _(OPT_INV,  float,   sinks,        "H")         \
    _(OPT_INV,  int64_t, q_offset,     "B")         \
    _(INT,      int64_t, left,         "")          \
    _(INT,      int64_t, right,        "")          \
    _(FLAG,     int,     causal,       "")          \
    _(REAL,     double,  scale,        "")          \
    _(REAL,     double,  softcap,      "")          \
    _(SIZE,     size_t,  N,            "")          \
    _(SIZE,     size_t,  M,            "")          \
    _(SIZE,     size_t,  H,            "")          \
    _(SIZE,     size_t,  G,            "")          \
    _(SIZE,     size_t,  D,            "")          \
    _(SIZE,     size_t,  L,            "")          \
    _(SIZE,     size_t,  B,            "")
CK_DECLARE(attention_varlen_fwd)

#define CK_ARGS_attention_varlen_bwd(_)             \
    _(OUT,      elem,    dq,           "N H D")     \
    _(OUT,      elem,    dk,           "M G D")     \
    _(OUT,      elem,    dv,           "M G D")     \
    _(OPT_OUTV, float,   dsinks,       "H")         \
    _(IN,       elem,    q,            "N H D")     \
    _(IN,       elem,    k,            "M G D")     \
    _(IN,       elem,    v,            "M G D")     \
    _(IN,       elem,    y,            "N H D")     \
    _(IN,       elem,    dy,           "N H D")     \
    _(OPT_INV,  float,   dlse,         "H N")       \
    _(INV,      float,   max,          "H N")       \
    _(INV,      float,   sum,          "H N")       \
    _(IN,       ids,     cu_seqlens_q, "L")         \
    _(IN,       ids,     cu_seqlens_k, "L")         \
    _(OPT_INV,  float,   sinks,        "H")         \
    _(OPT_INV,  int64_t, q_offset,     "B")         \
    _(INT,      int64_t, left,         "")          \
    _(INT,      int64_t, right,        "")          \
    _(FLAG,     int,     causal,       "")          \
    _(REAL,     double,  scale,        "")          \
    _(REAL,     double,  softcap,      "")          \
    _(FLAG,     int,     accumulate,   "")          \
    _(SIZE,     size_t,  N,            "")          \
    _(SIZE,     size_t,  M,            "")          \
    _(SIZE,     size_t,  H,            "")          \
    _(SIZE,     size_t,  G,            "")          \
    _(SIZE,     size_t,  D,            "")          \
    _(SIZE,     size_t,  L,            "")          \
    _(SIZE,     size_t,  B,            "")
CK_DECLARE(attention_varlen_bwd)
#endif

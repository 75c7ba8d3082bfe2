#ifndef CK_KV_CACHE_H
#define CK_KV_CACHE_H
#include "ops/kv_store.h"
/*
 * kv_append -- write the keys and values of new tokens behind those that an item holds (ops/kv_store.h says where, how)
 *
 *     for j < counts[b]:  position lengths[b] + j of item b becomes k[b, g, j, :], v[b, g, j, :]
 *
 * Nothing else of the store is touched.  The lengths themselves are the caller's to move on.  What a token is stored as
 * depends on the token alone.  Before that, block copy_from[m] is copied to block copy_to[m].
 *
 * Refused, with nothing written: lengths[b] + counts[b] > S without a table, or more than P blocks (in a ring,
 * counts[b] > S); a negative one; a block out of range; in a quantised store, NaN, inf or 2^126 in what is to be written.
 */
#define CK_ARGS_kv_append(_)                        \
    CK_KV_WRITTEN(_)                                \
    _(IN,       elem,    k,         "B G T D")      \
    _(IN,       elem,    v,         "B G T D")      \
    _(INV,      int64_t, lengths,   "B")            \
    _(OPT_INV,  int64_t, counts,    "B")            \
    _(OPT_INV,  int64_t, table,     "B P")          \
    _(OPT_INV,  int64_t, copy_from, "M")            \
    _(OPT_INV,  int64_t, copy_to,   "M")            \
    _(FLAG,     int,     ring,      "")             \
    _(INT,      int64_t, format,    "")             \
    _(INT,      int64_t, group,     "")             \
    _(SIZE,     size_t,  N,         "")             \
    _(SIZE,     size_t,  P,         "")             \
    _(SIZE,     size_t,  G,         "")             \
    _(SIZE,     size_t,  S,         "")             \
    _(SIZE,     size_t,  D,         "")             \
    _(SIZE,     size_t,  W,         "")             \
    _(SIZE,     size_t,  V,         "")             \
    _(SIZE,     size_t,  B,         "")             \
    _(SIZE,     size_t,  T,         "")             \
    _(SIZE,     size_t,  M,         "")
CK_DECLARE(kv_append)

/* What it refuses, but for NaN and inf, for a layer to ask before it begins. */
ck_status ck_refuse_append(const struct ck_kv_append *a);

/*
 * kv_append_batched -- one token for each of N caches of one item each, of any capacities, each at its own length
 *
 *     position lengths[n] of cache n becomes k[n, g, :], v[n, g, :]
 */
#define CK_ARGS_kv_append_batched(_)                    \
    _(LIST_OUT,     uint8_t, k_codes,  "B E S W")       \
    _(OPT_LIST_OUT, elem,    k_scales, "B E S V")       \
    _(OPT_LIST_OUT, elem,    k_biases, "B E S V")       \
    _(LIST_OUT,     uint8_t, v_codes,  "B E S W")       \
    _(OPT_LIST_OUT, elem,    v_scales, "B E S V")       \
    _(OPT_LIST_OUT, elem,    v_biases, "B E S V")       \
    _(IN,           elem,    k,        "N G D")         \
    _(IN,           elem,    v,        "N G D")         \
    _(INV,          int64_t, lengths,  "N")             \
    _(FLAG,         int,     ring,     "")              \
    _(INT,          int64_t, format,   "")              \
    _(INT,          int64_t, group,    "")              \
    _(SIZE,         size_t,  N,        "")              \
    _(SIZE,         size_t,  G,        "")              \
    _(SIZE,         size_t,  D,        "")              \
    _(SIZES,        size_t,  B,        "")              \
    _(SIZES,        size_t,  E,        "")              \
    _(SIZES,        size_t,  S,        "")              \
    _(SIZES,        size_t,  W,        "")              \
    _(SIZES,        size_t,  V,        "")
CK_DECLARE(kv_append_batched)

/*
 * kv_attend -- causal attention (ops/attention.h) over what a cache holds, as it is stored: no dequantised copy is made
 *
 * Item b holds lengths[b] positions; its query t stands at offsets[b] + t and sees keys from left before it (all where
 * left < 0).  A key's value is the float32 number that ops/kv_store.h gives it, not rounded to the dtype.  In a ring, what a
 * query sees must be among the last S positions.
 */
#define CK_ARGS_kv_attend(_)                        \
    _(OUT,      elem,    y,        "B H T D")       \
    _(IN,       elem,    q,        "B H T D")       \
    CK_KV_READ(_)                                   \
    _(OPT_INV,  int64_t, table,    "B P")           \
    _(OPT_INV,  float,   sinks,    "H")             \
    _(INV,      int64_t, offsets,  "B")             \
    _(INV,      int64_t, lengths,  "B")             \
    _(INT,      int64_t, left,     "")              \
    _(REAL,     double,  scale,    "")              \
    _(REAL,     double,  softcap,  "")              \
    _(FLAG,     int,     ring,     "")              \
    _(INT,      int64_t, format,   "")              \
    _(INT,      int64_t, group,    "")              \
    _(SIZE,     size_t,  N,        "")              \
    _(SIZE,     size_t,  P,        "")              \
    _(SIZE,     size_t,  G,        "")              \
    _(SIZE,     size_t,  S,        "")              \
    _(SIZE,     size_t,  D,        "")              \
    _(SIZE,     size_t,  W,        "")              \
    _(SIZE,     size_t,  V,        "")              \
    _(SIZE,     size_t,  B,        "")              \
    _(SIZE,     size_t,  H,        "")              \
    _(SIZE,     size_t,  T,        "")
CK_DECLARE(kv_attend)

/* kv_read -- positions first..first+L-1 of one item, keys or values: y[g, l, :].  Bulk dequantisation; plain ones a copy. */
#define CK_ARGS_kv_read(_)                          \
    _(OUT,      elem,    y,      "G L D")           \
    _(INV,      uint8_t, codes,  "N G S W")         \
    _(OPT_INV,  elem,    scales, "N G S V")         \
    _(OPT_INV,  elem,    biases, "N G S V")         \
    _(OPT_INV,  int64_t, table,  "B P")             \
    _(INT,      int64_t, item,   "")                \
    _(INT,      int64_t, first,  "")                \
    _(INT,      int64_t, l,      "")                \
    _(INT,      int64_t, d,      "")                \
    _(INT,      int64_t, format, "")                \
    _(INT,      int64_t, group,  "")                \
    _(SIZE,     size_t,  N,      "")                \
    _(SIZE,     size_t,  P,      "")                \
    _(SIZE,     size_t,  G,      "")                \
    _(SIZE,     size_t,  S,      "")                \
    _(SIZE,     size_t,  D,      "")                \
    _(SIZE,     size_t,  W,      "")                \
    _(SIZE,     size_t,  V,      "")                \
    _(SIZE,     size_t,  B,      "")                \
    _(SIZE,     size_t,  L,      "")
CK_DECLARE(kv_read)

/* kv_quantize, kv_dequantize -- the same codes for rows that lie in no cache.  NaN and inf are refused. */
#define CK_ARGS_kv_quantize(_)                      \
    _(OUT,      uint8_t, codes,  "R* W")            \
    _(OPT_OUT,  elem,    scales, "R* V")            \
    _(OPT_OUT,  elem,    biases, "R* V")            \
    _(IN,       elem,    x,      "R* D")            \
    _(INT,      int64_t, format, "")                \
    _(INT,      int64_t, group,  "")                \
    _(SIZE,     size_t,  R,      "")                \
    _(SIZE,     size_t,  D,      "")                \
    _(SIZE,     size_t,  W,      "")                \
    _(SIZE,     size_t,  V,      "")
CK_DECLARE(kv_quantize)

#define CK_ARGS_kv_dequantize(_)                    \
    _(OUT,      elem,    y,      "R* D")            \
    _(IN,       uint8_t, codes,  "R* W")            \
    _(OPT_IN,   elem,    scales, "R* V")            \
    _(OPT_IN,   elem,    biases, "R* V")            \
    _(INT,      int64_t, d,      "")                \
    _(INT,      int64_t, format, "")                \
    _(INT,      int64_t, group,  "")                \
    _(SIZE,     size_t,  R,      "")                \
    _(SIZE,     size_t,  D,      "")                \
    _(SIZE,     size_t,  W,      "")                \
    _(SIZE,     size_t,  V,      "")
CK_DECLARE(kv_dequantize)

/* Which of R = I T rows of D elements hold NaN, inf or numbers from 2^126 on, of the first counts[i / G] in every T (all where NULL): a byte a row. */
struct ck_kv_finite {
    uint8_t *strange;
    ck_array x;
    const int64_t *counts;
    size_t R, T, G, D;
};
#endif

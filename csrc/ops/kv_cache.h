#ifndef CK_KV_CACHE_H
#define CK_KV_CACHE_H
#include "ops/op.h"
/*
 * kv_cache_append -- write the keys and values of new tokens behind those that an item holds
 *
 *     for j < counts[b]:  keys[b, g, lengths[b] + j, :] = k[b, g, j, :],  values likewise from v
 *
 * Storage is head-major, [B, G, S, D] with S the capacity: the rows that one head reads in decoding lie end to end.
 * Nothing else of it is touched.  The lengths themselves are the caller's to move on.  A copy: bit for bit.
 * Refused, with nothing written: lengths[b] + counts[b] > S, or a negative one.
 */
#define CK_ARGS_kv_cache_append(_)                \
    _(OUT,     elem,    keys,    "B G S D")       \
    _(OUT,     elem,    values,  "B G S D")       \
    _(IN,      elem,    k,       "B G T D")       \
    _(IN,      elem,    v,       "B G T D")       \
    _(INV,     int64_t, lengths, "B")             \
    _(OPT_INV, int64_t, counts,  "B")             \
    _(SIZE,    size_t,  B,       "")              \
    _(SIZE,    size_t,  G,       "")              \
    _(SIZE,    size_t,  T,       "")              \
    _(SIZE,    size_t,  S,       "")              \
    _(SIZE,    size_t,  D,       "")
CK_DECLARE(kv_cache_append)

/* What append refuses, for a layer to ask before it begins. */
ck_status ck_refuse_lengths(const int64_t *lengths, const int64_t *counts, size_t B, size_t T, size_t S);
#endif

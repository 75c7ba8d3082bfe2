#ifndef CK_ROPE_H
#define CK_ROPE_H
#include "ops/op.h"
/*
 * rope -- rotary position embedding                                       (Su et al. 2021, arXiv:2104.09864)
 *
 *     p            = t, or positions[t], or positions[b,t]               the row of the table
 *     (lo, hi)     = (k, k + K), or (2k, 2k + 1) when `interleaved`      the pair k of K
 *     y[n,t,lo]    = x[n,t,lo] * cos[p,k] - x[n,t,hi] * sin[p,k]
 *     y[n,t,hi]    = x[n,t,lo] * sin[p,k] + x[n,t,hi] * cos[p,k]
 *     y[n,t,c]     = x[n,t,c]                                            for c >= 2K, bit for bit
 *
 *     dx           = the rotation of dy by the opposite angle            sin taken as -sin
 *
 *     angle[t,k]   = positions[t] * base^(-2k / 2K)                      rope_table: in double,
 *     cos, sin     = of that angle                                       each rounded once, to float
 *
 * Sizes: N rows of heads, T tokens, D channels, S rows in the table, P items that have positions of their own:
 * positions is [T] (P = 1), or [P,T] where the rows n of an item lie together, N / P of them.
 * Saved for backward: nothing.  In place: y may be x, dx may be dy.  Each result is two products, of which the first
 * is rounded before the sum: fma(hi, -sin, lo * cos) and fma(hi, cos, lo * sin).
 * Refused before anything is written: 2K > D; without positions S != T; a position outside the table.
 */
#define CK_ARGS_rope_fwd(_)                       \
    _(OVER,   elem,   y,           "N* T D")      \
    _(IN,     elem,   x,           "N* T D")      \
    _(IN,     float,  cos,         "S K")         \
    _(IN,     float,  sin,         "S K")         \
    _(OPT_IN, ids,    positions,   "P* T")        \
    _(FLAG,   int,    interleaved, "")            \
    _(SIZE,   size_t, N,           "")            \
    _(SIZE,   size_t, T,           "")            \
    _(SIZE,   size_t, D,           "")            \
    _(SIZE,   size_t, S,           "")            \
    _(SIZE,   size_t, K,           "")            \
    _(SIZE,   size_t, P,           "")
CK_DECLARE(rope_fwd)

/* What forward and backward refuse, for a layer to ask before it begins; y and x are not looked at. */
ck_status ck_refuse_rope(const struct ck_rope_fwd *a);

#define CK_ARGS_rope_bwd(_)                       \
    _(OVER,   elem,   dx,          "N* T D")      \
    _(IN,     elem,   dy,          "N* T D")      \
    _(IN,     float,  cos,         "S K")         \
    _(IN,     float,  sin,         "S K")         \
    _(OPT_IN, ids,    positions,   "P* T")        \
    _(FLAG,   int,    interleaved, "")            \
    _(SIZE,   size_t, N,           "")            \
    _(SIZE,   size_t, T,           "")            \
    _(SIZE,   size_t, D,           "")            \
    _(SIZE,   size_t, S,           "")            \
    _(SIZE,   size_t, K,           "")            \
    _(SIZE,   size_t, P,           "")
CK_DECLARE(rope_bwd)

#define CK_ARGS_rope_table(_)                     \
    _(OUTV,   float,  cos,         "T K")         \
    _(OUTV,   float,  sin,         "T K")         \
    _(IN,     ids,    positions,   "T")           \
    _(REAL,   double, base,        "")            \
    _(SIZE,   size_t, T,           "")            \
    _(SIZE,   size_t, K,           "")
CK_DECLARE(rope_table)

/* Items of a task are (block of CK_ROPE_T tokens, n), n fastest: the block's part of the table stays in the cache. */
enum { CK_ROPE_T = 8 };

/* Element t of row p of an array of ids. */
static inline int64_t
ck_position(const ck_array *positions, size_t p, size_t t)
{
    const char *at = (const char *)ck_row(positions, p) + t * positions->width;
    return positions->width == sizeof(int64_t) ? *(const int64_t *)at : *(const int32_t *)at;
}
#endif

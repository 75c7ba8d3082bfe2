#ifndef CK_QK_NORM_ROPE_H
#define CK_QK_NORM_ROPE_H
#include "ops/rope.h"
/*
 * qk_norm_rope -- queries or keys normed head by head and then turned, in one pass    (as in Qwen 3, arXiv:2505.09388)
 *
 *     rstd[n,t]    = 1 / sqrt(sum_c x[n,t,c]^2 / D + eps)
 *     v[n,t,c]     = x[n,t,c] * rstd[n,t] * weight[c]            not rounded to the dtype
 *     y[n,t,:]     = v[n,t,:] turned as in rope: pairs, positions, channels from 2K on as there
 *
 *     dv           = dy turned by the opposite angle             not rounded either
 *     dot[n,t]     = sum_c dv[n,t,c] * weight[c] * x[n,t,c]
 *     dx[n,t,c]    = rstd[n,t] * (dv[n,t,c] * weight[c] - x[n,t,c] * rstd[n,t]^2 * dot[n,t] / D)
 *     dweight[c]   = sum_{n,t} dv[n,t,c] * x[n,t,c] * rstd[n,t]  added to what is there when `accumulate`
 *
 * In float32 y and dx have the bits of rms_norm and rope one after the other.  Saved for backward: rstd.  In place: y
 * may be x, dx may be dy.  Sums over c as in rms_norm; over n and t in blocks of ck_qk_items() items (an item is
 * CK_ROPE_T tokens of one n), then block by block in double.  Refused: what rope refuses.
 */
#define CK_ARGS_qk_norm_rope_fwd(_)                 \
    _(OVER,     elem,   y,           "N* T D")      \
    _(OPT_OUTV, float,  rstd,        "N* T")        \
    _(IN,       elem,   x,           "N* T D")      \
    _(IN,       weight, weight,      "D")           \
    _(IN,       float,  cos,         "S K")         \
    _(IN,       float,  sin,         "S K")         \
    _(OPT_IN,   ids,    positions,   "P* T")        \
    _(FLAG,     int,    interleaved, "")            \
    _(REAL,     double, eps,         "")            \
    _(SIZE,     size_t, N,           "")            \
    _(SIZE,     size_t, T,           "")            \
    _(SIZE,     size_t, D,           "")            \
    _(SIZE,     size_t, S,           "")            \
    _(SIZE,     size_t, K,           "")            \
    _(SIZE,     size_t, P,           "")
CK_DECLARE(qk_norm_rope_fwd)

#define CK_ARGS_qk_norm_rope_bwd(_)                 \
    _(OVER,     elem,   dx,          "N* T D")      \
    _(OPT_OUT,  weight, dweight,     "D")           \
    _(IN,       elem,   dy,          "N* T D")      \
    _(IN,       elem,   x,           "N* T D")      \
    _(IN,       weight, weight,      "D")           \
    _(INV,      float,  rstd,        "N* T")        \
    _(IN,       float,  cos,         "S K")         \
    _(IN,       float,  sin,         "S K")         \
    _(OPT_IN,   ids,    positions,   "P* T")        \
    _(FLAG,     int,    interleaved, "")            \
    _(FLAG,     int,    accumulate,  "")            \
    _(SIZE,     size_t, N,           "")            \
    _(SIZE,     size_t, T,           "")            \
    _(SIZE,     size_t, D,           "")            \
    _(SIZE,     size_t, S,           "")            \
    _(SIZE,     size_t, K,           "")            \
    _(SIZE,     size_t, P,           "")
CK_DECLARE(qk_norm_rope_bwd)

/* Items (block of CK_ROPE_T tokens, n), n fastest, whose rows leave one row of dweight, [D]: about 32 rows. */
static inline size_t
ck_qk_items(size_t T)
{
    return T < CK_ROPE_T ? 32 / (T + (T == 0)) : 32 / CK_ROPE_T;
}
#endif

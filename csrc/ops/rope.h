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
 * mrope -- the same where a token has A positions (time, height, width)   (Wang et al. 2024, arXiv:2409.12191)
 *
 *     p            = positions[axes[k],t], or positions[axes[k],b,t]     pair k goes by axis axes[k]
 *
 * Sizes: N rows of heads, T tokens, D channels, S rows in the table, P items that have positions of their own:
 * positions is [T] (P = 1), or [P,T] where the rows n of an item lie together, N / P of them.
 * Saved for backward: nothing.  In place: y may be x, dx may be dy.  Each result is two products, of which the first
 * is rounded before the sum: fma(hi, -sin, lo * cos) and fma(hi, cos, lo * sin).
 * Refused before anything is written: 2K > D; without positions S != T; a position outside the table, an axis >= A.
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

#define CK_ARGS_mrope_fwd(_)                      \
    _(OVER,   elem,    y,           "N* T D")     \
    _(IN,     elem,    x,           "N* T D")     \
    _(IN,     float,   cos,         "S K")        \
    _(IN,     float,   sin,         "S K")        \
    _(INV,    int64_t, axes,        "K")          \
    _(IN,     ids,     positions,   "A P* T")     \
    _(FLAG,   int,     interleaved, "")           \
    _(SIZE,   size_t,  N,           "")           \
    _(SIZE,   size_t,  T,           "")           \
    _(SIZE,   size_t,  D,           "")           \
    _(SIZE,   size_t,  S,           "")           \
    _(SIZE,   size_t,  K,           "")           \
    _(SIZE,   size_t,  A,           "")           \
    _(SIZE,   size_t,  P,           "")
CK_DECLARE(mrope_fwd)

#define CK_ARGS_mrope_bwd(_)                      \
    _(OVER,   elem,    dx,          "N* T D")     \
    _(IN,     elem,    dy,          "N* T D")     \
    _(IN,     float,   cos,         "S K")        \
    _(IN,     float,   sin,         "S K")        \
    _(INV,    int64_t, axes,        "K")          \
    _(IN,     ids,     positions,   "A P* T")     \
    _(FLAG,   int,     interleaved, "")           \
    _(SIZE,   size_t,  N,           "")           \
    _(SIZE,   size_t,  T,           "")           \
    _(SIZE,   size_t,  D,           "")           \
    _(SIZE,   size_t,  S,           "")           \
    _(SIZE,   size_t,  K,           "")           \
    _(SIZE,   size_t,  A,           "")           \
    _(SIZE,   size_t,  P,           "")
CK_DECLARE(mrope_bwd)

/* Items of a task are (block of CK_ROPE_T tokens, n), n fastest: the block's part of the table stays in the cache. */
enum { CK_ROPE_T = 8 };

/* Element t of row p of an array of ids. */
static inline int64_t
ck_position(const ck_array *positions, size_t p, size_t t)
{
    const char *at = (const char *)ck_row(positions, p) + t * positions->width;
    return positions->width == sizeof(int64_t) ? *(const int64_t *)at : *(const int32_t *)at;
}

/*
 * rope_table -- the table of rope                                            all in double; K pairs, dim = 2K
 *
 *     f[k]         = base^(-2k / dim)
 *     f'[k]        = f[k] as the rule stretches it
 *     cos[t,k]     = attention * cos(positions[t] * f'[k]), sin likewise     each rounded once, to float
 *
 * Rules, s = factor, L = original, n = length, or where that is 0 or less the last position + 1:
 *
 *     DEFAULT   f[k]
 *     LINEAR    f[k] / s                                                   (Chen et al. 2023, arXiv:2306.15595)
 *     NTK       (base * s^(dim / (dim - 2)))^(-2k / dim)                   (Peng et al. 2023, arXiv:2309.00071, eq. 16)
 *     DYNAMIC   as NTK with s * max(n, L) / L - (s - 1) for s              (there, section 3.3; as transformers has it)
 *     YARN      f[k] * (1 - r[k]) + f[k] / s * r[k]                        (there, section 3.2)
 *               r[k] = (k - lo) / (hi - lo), between 0 and 1; lo and hi are the pairs that turn `high` and `low`
 *               times in L tokens: lo = max(0, k(high)), hi = min(dim - 1, k(low)), 0.001 more where they are equal;
 *               k(turns) = dim * ln(L / (2 pi turns)) / (2 ln base), rounded outwards when `truncate`
 *     LLAMA3    by the wavelength w = 2 pi / f[k]:  f[k] where w < L / high;  f[k] / s where w > L / low;  between
 *               them f[k] * u + f[k] / s * (1 - u), u = (L / w - low) / (high - low)           (Llama 3.1's release)
 *     LONGROPE  f[k] / short_factor[k], or where n > L f[k] / long_factor[k]  (Ding et al. 2024, arXiv:2402.13753)
 *
 * Refused: base <= 0 (yarn: <= 1) or infinite, factor < 1, and of the others what the rule uses and is out of range.
 */
enum {
    CK_ROPE_DEFAULT, CK_ROPE_LINEAR, CK_ROPE_NTK, CK_ROPE_DYNAMIC, CK_ROPE_YARN, CK_ROPE_LLAMA3, CK_ROPE_LONGROPE,
    CK_ROPE_RULES
};
#define CK_ARGS_rope_table(_)                       \
    _(OUTV,    float,   cos,          "T K")        \
    _(OUTV,    float,   sin,          "T K")        \
    _(IN,      ids,     positions,    "T")          \
    _(OPT_INV, double,  short_factor, "K")          \
    _(OPT_INV, double,  long_factor,  "K")          \
    _(INT,     int64_t, rule,         "")           \
    _(INT,     int64_t, length,       "")           \
    _(REAL,    double,  base,         "")           \
    _(REAL,    double,  factor,       "")           \
    _(REAL,    double,  original,     "")           \
    _(REAL,    double,  low,          "")           \
    _(REAL,    double,  high,         "")           \
    _(FLAG,    int,     truncate,     "")           \
    _(REAL,    double,  attention,    "")           \
    _(SIZE,    size_t,  T,            "")           \
    _(SIZE,    size_t,  K,            "")
CK_DECLARE(rope_table)

/* What remains for its tasks: cos[t,k] and sin[t,k] of the frequencies as they are. */
#define CK_ARGS_rope_angles(_)                      \
    _(OUTV,    float,   cos,          "T K")        \
    _(OUTV,    float,   sin,          "T K")        \
    _(IN,      ids,     positions,    "T")          \
    _(INV,     double,  frequency,    "K")          \
    _(REAL,    double,  attention,    "")           \
    _(SIZE,    size_t,  T,            "")           \
    _(SIZE,    size_t,  K,            "")
CK_DECLARE(rope_angles)
#endif

#ifndef CK_CROSS_ENTROPY_H
#define CK_CROSS_ENTROPY_H
#include "ops/op.h"
/*
 * cross_entropy -- how surprising the target is
 *
 *     x[r,v]       = softcap * tanh(logits[r,v] / softcap), the logits themselves where softcap is infinite
 *     peak[r]      = max_v x[r,v]
 *     sum[r]       = sum_v exp(x[r,v] - peak[r])
 *     lse[r]       = peak[r] + log(sum[r])
 *     losses[r]    = lse[r] - (1 - s) x[r,t] - s/V sum_v x[r,v] + z_loss * lse[r]^2,   t = target[r], s = label_smoothing
 *     loss         = sum_r losses[r], divided by the number of counted rows where `mean`
 *
 *     p[r,v]       = exp(x[r,v] - peak[r]) / sum[r]
 *     g[r]         = dy[r], or dloss, or dloss / number of counted rows where `mean`
 *     dlogits[r,v] = g[r] * ((1 + 2 z_loss lse[r]) p[r,v] - (1 - s) [v = t] - s/V) * (1 - tanh(logits[r,v] / softcap)^2)
 *
 * A row whose target is ignore_index is not counted: losses[r] and dlogits[r,:] are 0 and its logits are not read.
 * No counted row: a mean of NaN, gradients of 0.  Other targets must be 0 to V-1, otherwise nothing is written.
 *
 * Saved for backward: peak and sum, apart: their logarithm as one float would lose an ulp of lse in every p.  In place:
 * dlogits may be logits.  Order: v in blocks of 2048, 16 lanes in each, block by block in double, rows of more than
 * CK_PIECE classes piece by piece; rows in tasks that follow from the shape, in double.  A row of logits is read once,
 * forward and backward.
 */
#define CK_ARGS_cross_entropy_fwd(_)                 \
    _(OPT_OUTV, float,  loss,            "")         \
    _(OPT_OUTV, float,  losses,          "R*")       \
    _(OPT_OUTV, float,  peak,            "R*")       \
    _(OPT_OUTV, float,  sum,             "R*")       \
    _(IN,       elem,   logits,          "R* V")     \
    _(IN,       ids,    target,          "R*")       \
    _(INT,      int64_t, ignore_index,   "")         \
    _(FLAG,     int,    mean,            "")         \
    _(REAL,     double, label_smoothing, "")         \
    _(REAL,     double, z_loss,          "")         \
    _(REAL,     double, softcap,         "")         \
    _(SIZE,     size_t, R,               "")         \
    _(SIZE,     size_t, V,               "")
CK_DECLARE(cross_entropy_fwd)

#define CK_ARGS_cross_entropy_bwd(_)                 \
    _(OVER,     elem,   dlogits,         "R* V")     \
    _(OPT_IN,   float,  dy,              "R*")       \
    _(REAL,     double, dloss,           "")         \
    _(IN,       elem,   logits,          "R* V")     \
    _(IN,       ids,    target,          "R*")       \
    _(INV,      float,  peak,            "R*")       \
    _(INV,      float,  sum,             "R*")       \
    _(INT,      int64_t, ignore_index,   "")         \
    _(FLAG,     int,    mean,            "")         \
    _(REAL,     double, label_smoothing, "")         \
    _(REAL,     double, z_loss,          "")         \
    _(REAL,     double, softcap,         "")         \
    _(SIZE,     size_t, R,               "")         \
    _(SIZE,     size_t, V,               "")
CK_DECLARE(cross_entropy_bwd)

/* How many rows count; CK_BAD_INDEX where a target is no class of `of`, the argument that has V of them. */
ck_status ck_count_targets(const ck_array *target, int64_t ignore_index, size_t R, size_t V, const char *of, size_t *counted);
ck_status ck_refuse_loss_options(double label_smoothing, double z_loss, double softcap);

/* A forward task's work is a double, the sum of the losses of its rows, or a ck_pieces where V is more than CK_PIECE.  A
 * backward task's is shared: a double to multiply dloss with, 1 over the number of counted rows where `mean`. */
#endif

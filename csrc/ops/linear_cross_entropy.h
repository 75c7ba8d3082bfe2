#ifndef CK_LINEAR_CROSS_ENTROPY_H
#define CK_LINEAR_CROSS_ENTROPY_H
#include "ops/op.h"
/*
 * linear_cross_entropy -- the loss of a language model from its last hidden states, without its logits in memory
 *
 *     logits[r,v]  = sum_c x[r,c] * weight[v,c]
 *     losses, loss = cross_entropy(logits, target)           every option as in cross_entropy.h
 *     dlogits[r,v] = as there
 *     dx[r,c]      = sum_v dlogits[r,v] * weight[v,c]
 *     dweight[v,c] = sum_r dlogits[r,v] * x[r,c]             added to what is there when `accumulate`
 *
 * Saved for backward: peak and sum of every row, as by cross_entropy.  Backward computes the logits anew.
 *
 * Logits and their gradients exist a block at a time: CK_LCE_ROWS rows of CK_LCE_CLASSES classes, as floats whatever
 * the dtype.  Memory beside the outputs, in floats: a block, and 10 a row; in 16 bits also R*C twice (x and dx as
 * floats), and twice CK_LCE_CLASSES*C (a block of the weight and of its gradient).
 *
 * Order: logits as in gemm.h; a row's exponentials as in cross_entropy.h, without pieces; losses in double, r ascending.
 * dx: the sum over v of each block of classes as in gemm.h, then the blocks, ascending.  dweight: the sum over r of each
 * block of rows, then the blocks, ascending; what is there is added last.  So the loss and dx of a row have the same
 * bits alone and in any batch, and in float32 each loss has those of the two ops one after the other.
 */
enum { CK_LCE_ROWS = 256, CK_LCE_CLASSES = 2048 };

#define CK_ARGS_linear_cross_entropy_fwd(_)          \
    _(OPT_OUTV, float,  loss,            "")         \
    _(OPT_OUTV, float,  losses,          "R*")       \
    _(OPT_OUTV, float,  peak,            "R*")       \
    _(OPT_OUTV, float,  sum,             "R*")       \
    _(IN,       elem,   x,               "R* C")     \
    _(IN,       elem,   weight,          "V C")      \
    _(IN,       ids,    target,          "R*")       \
    _(INT,      int64_t, ignore_index,   "")         \
    _(FLAG,     int,    mean,            "")         \
    _(REAL,     double, label_smoothing, "")         \
    _(REAL,     double, z_loss,          "")         \
    _(REAL,     double, softcap,         "")         \
    _(SIZE,     size_t, R,               "")         \
    _(SIZE,     size_t, C,               "")         \
    _(SIZE,     size_t, V,               "")
CK_DECLARE(linear_cross_entropy_fwd)

#define CK_ARGS_linear_cross_entropy_bwd(_)          \
    _(OPT_OUT,  elem,   dx,              "R* C")     \
    _(OPT_OUT,  elem,   dweight,         "V C")      \
    _(OPT_IN,   float,  dy,              "R*")       \
    _(REAL,     double, dloss,           "")         \
    _(IN,       elem,   x,               "R* C")     \
    _(IN,       elem,   weight,          "V C")      \
    _(IN,       ids,    target,          "R*")       \
    _(INV,      float,  peak,            "R*")       \
    _(INV,      float,  sum,             "R*")       \
    _(INT,      int64_t, ignore_index,   "")         \
    _(FLAG,     int,    mean,            "")         \
    _(REAL,     double, label_smoothing, "")         \
    _(REAL,     double, z_loss,          "")         \
    _(REAL,     double, softcap,         "")         \
    _(FLAG,     int,    accumulate,      "")         \
    _(SIZE,     size_t, R,               "")         \
    _(SIZE,     size_t, C,               "")         \
    _(SIZE,     size_t, V,               "")
CK_DECLARE(linear_cross_entropy_bwd)

/* Loss and gradients in one call, with the bits of the two: the logits of CK_LCE_ROWS rows are kept, CK_LCE_ROWS * V floats,
 * and not computed twice; but for 16 bits, or more rows with `accumulate`, where it is the two one after the other. */
#define CK_ARGS_linear_cross_entropy_grads(_)        \
    _(OPT_OUTV, float,  loss,            "")         \
    _(OPT_OUT,  elem,   dx,              "R* C")     \
    _(OPT_OUT,  elem,   dweight,         "V C")      \
    _(REAL,     double, dloss,           "")         \
    _(IN,       elem,   x,               "R* C")     \
    _(IN,       elem,   weight,          "V C")      \
    _(IN,       ids,    target,          "R*")       \
    _(INT,      int64_t, ignore_index,   "")         \
    _(FLAG,     int,    mean,            "")         \
    _(REAL,     double, label_smoothing, "")         \
    _(REAL,     double, z_loss,          "")         \
    _(REAL,     double, softcap,         "")         \
    _(FLAG,     int,    accumulate,      "")         \
    _(SIZE,     size_t, R,               "")         \
    _(SIZE,     size_t, C,               "")         \
    _(SIZE,     size_t, V,               "")
CK_DECLARE(linear_cross_entropy_grads)

/* What is known of a row after some of its classes; sum is relative to peak, `other` the sum of x where it is asked for. */
typedef struct {
    double sum, other, target; /* target: its x, once it was among the classes */
    float peak;                /* -inf at first */
} ck_seen;

/*
 * A block of logits: rows `row`.. of the call and classes `first`.. of V.  Forward adds it to what was seen of its rows
 * (state), where a row's target is not ignored; backward turns it into dlogits.
 */
#define CK_ARGS_logits_block_fwd(_)                  \
    _(OUTV,     ck_seen, state,          "R")        \
    _(IN,       elem,   logits,          "R N")      \
    _(IN,       ids,    target,          "R*")       \
    _(INT,      int64_t, ignore_index,   "")         \
    _(FLAG,     int,    smooth,          "")         \
    _(REAL,     double, softcap,         "")         \
    _(SIZE,     size_t, row,             "")         \
    _(SIZE,     size_t, first,           "")         \
    _(SIZE,     size_t, R,               "")         \
    _(SIZE,     size_t, N,               "")
CK_DECLARE(logits_block_fwd)

#define CK_ARGS_logits_block_bwd(_)                  \
    _(OVER,     elem,   dlogits,         "R N")      \
    _(IN,       elem,   logits,          "R N")      \
    _(OPT_IN,   float,  dy,              "R*")       \
    _(REAL,     double, dloss,           "")         \
    _(IN,       ids,    target,          "R*")       \
    _(INV,      float,  peak,            "R")        \
    _(INV,      float,  sum,             "R")        \
    _(INT,      int64_t, ignore_index,   "")         \
    _(REAL,     double, label_smoothing, "")         \
    _(REAL,     double, z_loss,          "")         \
    _(REAL,     double, softcap,         "")         \
    _(SIZE,     size_t, row,             "")         \
    _(SIZE,     size_t, first,           "")         \
    _(SIZE,     size_t, R,               "")         \
    _(SIZE,     size_t, N,               "")         \
    _(SIZE,     size_t, V,               "")
CK_DECLARE(logits_block_bwd)
#endif

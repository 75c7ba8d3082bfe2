#ifndef CK_SELECTION_H
#define CK_SELECTION_H
#include "ops/op.h"
/*
 * selection -- from scores to the number of one of them
 *
 *     order       of a row: NaN before all numbers, a larger number before a smaller one, equals (+0 and -0 too, and NaN
 *                 among themselves) by ascending index
 *
 *     argmax      y[r]         = the first in order
 *     topk        indices[r,j] = the one at place j, values[r,j] = x[r, indices[r,j]] bit for bit        j < k
 *
 *     sample      z[v]    = logits[r,v] / temperature
 *                 top_k     keeps v where z[v] >= the value at place top_k - 1: as many more as are equal to it
 *                 top_p     keeps v where those before it, of the kept ones, have less than top_p of their probability
 *                 min_p     keeps v where its probability is at least min_p times the largest
 *                 y[r]    = the first v at which the sum of kept w[0..v] exceeds u[r] times their whole sum,
 *                           with w[v] = exp(z[v] - max z)
 *                 u[r]    = 53 bits of Philox 4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405), key the seed,
 *                           counter r; with a seed for every row, key seeds[r], counter 0
 *
 * The steps are those of Hugging Face transformers (generation/logits_process.py: TemperatureLogitsWarper,
 * TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper) in its order.  temperature 0 is argmax.  w is float, sums run
 * in double: over what top_k kept, v ascending, in blocks of CK_SAMPLE_BLOCK; those of top_p in an order that follows from
 * the row alone.
 * So a draw is the same for any number of threads, and depends on nothing but its row, its seed and its number.
 *
 * Refused before anything is written: rows without elements (argmax, sample); k > C; 2^32 elements or more in a row
 * (topk, sample); a row with NaN or +inf, or of -inf alone, unless temperature is 0.
 */
#define CK_ARGS_argmax_fwd(_)                   \
    _(OUT,    int64_t, y,           "R*")       \
    _(IN,     elem,    x,           "R* C")     \
    _(SIZE,   size_t,  R,           "")         \
    _(SIZE,   size_t,  C,           "")
CK_DECLARE(argmax_fwd)

#define CK_ARGS_topk_fwd(_)                     \
    _(OUT,    elem,    values,      "R* K")     \
    _(OUT,    int64_t, indices,     "R* K")     \
    _(IN,     elem,    x,           "R* C")     \
    _(INT,    int64_t, k,           "C")        \
    _(SIZE,   size_t,  R,           "")         \
    _(SIZE,   size_t,  C,           "")
CK_DECLARE(topk_fwd)

#define CK_ARGS_sample_fwd(_)                   \
    _(OUT,    int64_t, y,           "R*")       \
    _(IN,     elem,    logits,      "R* V")     \
    _(OPT_IN, ids,     seeds,       "R*")       \
    _(INT,    int64_t, seed,        "")         \
    _(REAL,   double,  temperature, "")         \
    _(INT,    int64_t, top_k,       "")         \
    _(REAL,   double,  top_p,       "")         \
    _(REAL,   double,  min_p,       "")         \
    _(SIZE,   size_t,  R,           "")         \
    _(SIZE,   size_t,  V,           "")
CK_DECLARE(sample_fwd)

/* Before it: the largest logit of every row, NaN where there is one. */
struct ck_sample_peaks {
    const struct ck_sample_fwd *of;
    float *peak; /* [R] */
};

/* What tasks of sample share as their work. */
typedef struct {
    const float *peak; /* [R] */
} ck_sample_work;

/* Long rows are cut: item i of argmax is block i % blocks of row i / blocks; where there are several, each leaves its
 * first, which the op folds. */
enum { CK_ARGMAX_BLOCK = 65536, CK_SAMPLE_BLOCK = 1024 };

typedef struct {
    float value; /* as a number */
    size_t index;
} ck_argmax_part;

static inline size_t
ck_argmax_blocks(size_t C)
{
    return C / CK_ARGMAX_BLOCK + (C % CK_ARGMAX_BLOCK != 0);
}

/* Whole lines: the share of the next thread begins at one too. */
static inline size_t
ck_selection_lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Bytes that a thread of topk needs: the k first, and room to sort them. */
static inline size_t
ck_topk_scratch(size_t k)
{
    return ck_selection_lines(2 * k * sizeof(uint64_t));
}

/* Of sample: two places in order, a logit, a weight and an index for every element. */
static inline size_t
ck_sample_scratch(size_t V)
{
    return ck_selection_lines(V * (2 * sizeof(uint64_t) + 2 * sizeof(float) + sizeof(uint32_t)));
}
#endif

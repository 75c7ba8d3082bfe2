#ifndef CK_EMBEDDING_H
#define CK_EMBEDDING_H
#include "ops/op.h"
/*
 * embedding -- rows of a table, picked by number
 *
 *     y[r,c]       = weight[ids[r], c]                            bit for bit
 *     dweight[v,c] = sum of dy[r,c] over r with ids[r] = v        added to what is there when `accumulate`
 *
 * Every id must be 0 to V-1, otherwise nothing is written.  Saved for backward: ids; of weight only its shape is read
 * again.  Sums run over ascending r, in double whatever the dtype, and are rounded at the end (to float, and from there
 * to 16 bits); rows of dweight that no id names become 0, or stay as they are when `accumulate`.
 */
#define CK_ARGS_embedding_fwd(_)                \
    _(OUT,  elem,   y,      "R* C")             \
    _(IN,   ids,    ids,    "R*")               \
    _(IN,   elem,   weight, "V C")              \
    _(SIZE, size_t, R,      "")                 \
    _(SIZE, size_t, V,      "")                 \
    _(SIZE, size_t, C,      "")
CK_DECLARE(embedding_fwd)

#define CK_ARGS_embedding_bwd(_)                \
    _(OUT,  elem,   dweight,    "V C")          \
    _(IN,   elem,   dy,         "R* C")         \
    _(IN,   ids,    ids,        "R*")           \
    _(IN,   elem,   weight,     "V C")          \
    _(FLAG, int,    accumulate, "")             \
    _(SIZE, size_t, R,          "")             \
    _(SIZE, size_t, V,          "")             \
    _(SIZE, size_t, C,          "")
CK_DECLARE(embedding_bwd)

/* What all backward tasks, along v, share as their work: row numbers sorted by id, ascending within one id; those of
 * id v lie before end[v] and behind end[v-1]. */
typedef struct {
    const size_t *row; /* [R] */
    const size_t *end; /* [V] */
} ck_embedding_order;
#endif

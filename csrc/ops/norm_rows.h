#ifndef CK_NORM_ROWS_H
#define CK_NORM_ROWS_H
/*
 * How the norms cut their rows, and what they ask beside: weights as floats, and sums over rows.
 *
 * As a rule a task is some whole rows.  Where that makes few tasks of much work (3 rows of 4 million), the rows are cut.
 * First, pieces of CK_NORM_PIECE columns of all rows are measured; then all rows are written by slices of columns, row
 * after row, with what the pieces of a row have to say together.  The second pass begins where the first one ended, with
 * what the caches still hold.  What there is one of a column (a weight made floats, the shares of its gradient) is kept by
 * the thread, of its slice alone: of the length of a row it would be as much to move as the rows.
 *
 * Sums along a row are the same in both ways: inside pieces, then piece by piece in double, ascending.  So are those over
 * rows, into a weight's gradient: rows ascend in a slice too.  References see whole rows.
 */
#include "ops/op.h"

enum { CK_NORM_PIECE = 65536, CK_NORM_SLICE = 65536 };

typedef struct { double a, b, c; } ck_norm_sums;

/* A norm: its kernel on R rows of C elements, `grain` rows a task where they are whole. */
typedef struct {
    ck_kernel *kernel;
    const void *args;
    size_t R, C, grain;
    ck_array weight[2]; /* [C]; of no data: none */
    ck_array sum[2];    /* [C]: gradients of weights, summed over rows; of no data: not wanted */
    int accumulate[2];
    size_t block; /* rows that leave a share of each gradient; 0: none is asked for, and measuring needs no weights */
} ck_norm;

/* A kernel's task.work. */
typedef struct {
    ck_norm norm;       /* weights of elem are made floats, but where rows are cut */
    ck_norm_sums *sums; /* [R,pieces]; NULL: tasks are whole rows */
    bool write;         /* tasks are slices of columns, the last one first; before: pieces of columns */
    size_t pieces, slices;
    float *parts; /* [sums wanted,blocks,C]: their shares; where rows are cut, those of a slice are in the scratch */
} ck_norm_rows;

/* For references: a weight as floats, NULL where there is none. */
static inline const float *
ck_norm_weight(ck_task task, size_t i)
{
    return ((const ck_norm_rows *)task.work)->norm.weight[i].data;
}

ck_status ck_run_norm(const ck_kernels *k, const ck_norm *norm);
#endif

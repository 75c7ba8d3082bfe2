#ifndef CK_NORM_ROWS_H
#define CK_NORM_ROWS_H
/*
 * How the norms cut their rows.  As a rule a task is some whole rows.  Where that makes few tasks of much work (3 rows of
 * 4 million), pieces of CK_NORM_PIECE elements of every row are measured first; then all rows are written, each task a
 * slice of columns, of row after row, with what the pieces of a row have to say together.
 *
 * Sums along a row are the same in both ways: inside pieces, then piece by piece in double, ascending.  So are those over
 * rows, into a weight's gradient: rows ascend in a slice too.
 */
#include "ops/op.h"

enum { CK_NORM_PIECE = 65536, CK_NORM_SLICE = 8192 };

typedef struct { double a, b, c; } ck_norm_sums;

/* A kernel's task.work. */
typedef struct {
    ck_norm_sums *sums; /* [R,pieces]; NULL: tasks are whole rows */
    bool write;         /* tasks are slices of columns; before: pieces, [R,pieces] */
    size_t pieces, R;
    float *parts;       /* [blocks of rows,C] of what is summed over rows; NULL: nothing is */
} ck_norm_rows;

/* For references: the rows of a task.  Where rows are cut, the first slice stands for all. */
static inline ck_task
ck_norm_task(ck_task task)
{
    const ck_norm_rows *rows = task.work;
    const bool first = rows->sums != NULL && rows->write && task.begin == 0;
    return rows->sums == NULL ? task : (ck_task){0, first ? rows->R : 0, task.work, task.scratch};
}

/* The kernel on R rows of C elements, `grain` rows a task where they are whole. */
ck_status ck_run_norm(ck_kernel *kernel, const void *args, size_t R, size_t C, size_t grain, float *parts);
#endif

#ifndef CK_ELEMENTWISE_H
#define CK_ELEMENTWISE_H
/*
 * Ops that treat every element alike are cut by elements, not by rows: item i of a task is element i % C of row i / C.
 * Where all arrays lie flat, the op makes them one row first (see add.c), so the shape costs nothing.  A kernel walks
 * its share as stretches of rows:
 *
 *     for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
 *         const elem *x = (const elem *)ck_row(&a->x, s.row) + s.column;    // s.n elements
 */
#include "ops/op.h"

typedef struct {
    size_t row, column, n;
} ck_stretch;

static inline ck_stretch
ck_stretch_at(size_t item, ck_task task, size_t C)
{
    if (item >= task.end)
        return (ck_stretch){0, 0, 0};
    const size_t column = item % C, left = task.end - item;
    return (ck_stretch){item / C, column, C - column < left ? C - column : left};
}

static inline ck_stretch
ck_first_stretch(ck_task task, size_t C)
{
    return ck_stretch_at(task.begin, task, C);
}

static inline ck_stretch
ck_next_stretch(ck_stretch s, ck_task task, size_t C)
{
    return ck_stretch_at(s.row * C + s.column + s.n, task, C);
}

/* Elements of a task: a multiple of every vector width, some microseconds of work. */
enum { CK_ELEMENTS = 16384 };
#endif

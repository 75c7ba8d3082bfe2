#ifndef CK_TENSOR_LIST_H
#define CK_TENSOR_LIST_H
/*
 * Ops on many tensors at once treat every element alike, and are cut as one list: tensor j of R[j] rows and C[j] columns
 * has ck_items(R[j] * C[j]) items, its elements in order and a little padding, from item start[j] on.  Padding keeps
 * the ends of tasks where whole vectors end.  A task of CK_LIST_ITEMS items is 64 KiB of float: a share of a large
 * tensor, or many small ones.  A kernel walks its share as pieces of rows:
 *
 *     for (ck_piece p = ck_first_piece(task, a->start, a->R, a->C); p.n != 0; p = ck_next_piece(p, a->R, a->C)) {
 *         const elem *x = ck_piece_of(a->x, p);    // p.n elements
 */
#include "ops/op.h"

enum { CK_LIST_ITEMS = 16384 };

typedef struct {
    size_t tensor, row, column, n;
    size_t left; /* items of the task from this piece on */
} ck_piece;

static inline size_t
ck_items(size_t elements)
{
    return (elements + 15) / 16 * 16;
}

/* The piece at element `at` of a tensor, or the first one after it; n = 0 at the end of the task. */
static inline ck_piece
ck_piece_at(size_t tensor, size_t at, size_t left, const size_t *R, const size_t *C)
{
    for (; left != 0; tensor++, at = 0) {
        const size_t size = R[tensor] * C[tensor];
        if (at < size) {
            const size_t column = at % C[tensor], rest = C[tensor] - column;
            return (ck_piece){tensor, at / C[tensor], column, rest < left ? rest : left, left};
        }
        left -= ck_items(size) - at;
    }
    return (ck_piece){tensor, 0, 0, 0, 0};
}

static inline ck_piece
ck_first_piece(ck_task task, const size_t *start, const size_t *R, const size_t *C)
{
    size_t tensor = 0;
    while (start[tensor + 1] <= task.begin)
        tensor++;
    return ck_piece_at(tensor, task.begin - start[tensor], task.end - task.begin, R, C);
}

static inline ck_piece
ck_next_piece(ck_piece p, const size_t *R, const size_t *C)
{
    return ck_piece_at(p.tensor, p.row * C[p.tensor] + p.column + p.n, p.left - p.n, R, C);
}

/* Where a piece of an array of a list begins; NULL where the list is absent. */
static inline void *
ck_piece_of(const ck_array *list, ck_piece p)
{
    return list != NULL ? (char *)ck_row(&list[p.tensor], p.row) + p.column * list[p.tensor].width : NULL;
}

/* Whether the members of two lists have the same type, pair by pair: for `either`, of which a kernel asks one alone. */
static inline bool
ck_same_types(const ck_array *x, const ck_array *y, size_t N)
{
    for (size_t j = 0; x != NULL && y != NULL && j < N; j++)
        if (x[j].width != y[j].width)
            return false;
    return true;
}

/*
 * What an op needs to walk its lists, in one block: `start` of N + 1 items, R and C where a tensor whose arrays all lie
 * flat has become one row, and `extra` doubles for the op itself.
 */
typedef struct {
    size_t *start, *R, *C;
    double *extra;
    size_t size; /* of the block, which begins at start */
} ck_tensors;

/* NULL start: no memory.  `lists` are `n_lists` lists of N arrays, NULL where absent. */
ck_tensors ck_lay_out(const ck_array *const *lists, size_t n_lists, const size_t *R, const size_t *C, size_t N, size_t extra);
void ck_forget(ck_tensors t);
#endif

#ifndef CK_PIECES_H
#define CK_PIECES_H
/*
 * Rows of softmax, log_softmax and cross_entropy that are longer than CK_PIECE are cut into pieces of that size, so
 * that a few of them keep all threads at work.  The cut follows from C alone: a row has the same bits alone and in a
 * batch.
 *
 * A kernel goes over a group of rows twice.  Its task.work is NULL for whole rows, or a ck_pieces; its items are then
 * pieces.  First each piece is measured (its maximum, and sums); the measures of a row are merged in order, in double;
 * then each piece is written with what the whole row has.  A group is small enough to wait in the last-level cache.
 */
#include "ops/op.h"

/* Short rows go together: each waits for its folds, all of them wait once. */
enum { CK_ROW_SHORT = 256, CK_ROW_GANG = 16 };

enum { CK_PIECE = 65536 };

typedef struct {
    double sum;   /* of exp(x - peak) in softmax-like rows */
    double other; /* what else adds up */
    float peak;   /* -inf where nothing is larger; 0 where sums are plain */
} ck_measure;

typedef struct {
    bool write;         /* measure first, then write */
    size_t row, pieces; /* the first row of the group; pieces of a row */
    ck_measure *part;   /* [rows,pieces] */
    ck_measure *whole;  /* [rows] */
} ck_pieces;

/* One of them, in C order. */
typedef struct {
    size_t row, begin, n; /* elements */
    ck_measure *part;
    ck_measure *whole;
} ck_span;

static inline ck_span
ck_piece_at(const ck_pieces *cut, size_t item, size_t C)
{
    const size_t row = item / cut->pieces, begin = item % cut->pieces * CK_PIECE;
    return (ck_span){cut->row + row, begin, C - begin < CK_PIECE ? C - begin : CK_PIECE, cut->part + item, cut->whole + row};
}

/* Rows of C elements for a task, where no result depends on it: several, as a kernel fetches the next row meanwhile. */
static inline size_t
ck_rows_grain(size_t R, size_t C)
{
    enum { FEW = 16384, MANY = 131072 };
    const size_t least = FEW / (C + 1) + 1, many = MANY / (C + 1) + 1, share = R / 16 + 1;
    const size_t grain = many < share ? many : share;
    return grain > least ? grain : least;
}

/* The kernel on R rows of C elements: whole rows, or pieces; a piece's scratch is that of CK_PIECE elements. */
ck_status ck_run_rows(ck_kernel *kernel, const void *args, size_t R, size_t C, size_t scratch_of_element);

/* The same, of pieces alone; *total is the sum over rows of what writing leaves in whole->other (no total: NULL). */
ck_status ck_run_pieces(ck_kernel *kernel, const void *args, size_t R, size_t C, size_t scratch_of_element, double *total);
#endif

#ifndef CK_SUM_ROWS_H
#define CK_SUM_ROWS_H
#include "ops/op.h"
/*
 * sum_rows -- how partial results of tasks become one
 *
 *     sum[c] = (accumulate ? sum[c] : 0) + sum_r x[r,c]
 *
 * r ascending, in double, rounded once.  Both contiguous, x elements or floats, as is sum.
 */
#define CK_ARGS_sum_rows(_)                  \
    _(OUT,  weight, sum,        "C")         \
    _(IN,   weight, x,          "R C")       \
    _(FLAG, int,    accumulate, "")          \
    _(SIZE, size_t, R,          "")          \
    _(SIZE, size_t, C,          "")
CK_DECLARE(sum_rows)
#endif

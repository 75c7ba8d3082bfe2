#ifndef CK_SGD_H
#define CK_SGD_H
#include "ops/op.h"
/*
 * sgd -- one step of stochastic gradient descent on one tensor, in the order of torch.optim.SGD
 *
 *     g        = scale * grad[r,c]                                 scale clips the norm of all gradients together
 *     g        = -g                                                when `maximize`
 *     g        = g + weight_decay * param[r,c]                     unless weight_decay = 0
 *     momentum = 0:  d = g
 *     otherwise:     b = g                                         on the `first` step
 *                    b = momentum * b + (1 - dampening) * g        on later ones;  buffer[r,c] = b
 *                    d = g + momentum * b when `nesterov`, else b
 *     param[r,c] = param[r,c] - lr * d
 *
 * Each line rounds as it is written: momentum * b first, every sum with a fused multiply-add where the instruction set
 * has it.  Numbers are rounded to float once; 1 - dampening is formed in double.  param and buffer are updated where
 * they lie.  With `check` nothing is done: what the call would refuse is refused.
 *
 * sum_of_squares -- sum[0] = (sum[0] when `accumulate`, else 0) + sum_rc x[r,c]^2, in double
 *
 * Order: blocks of CK_ELEMENTS elements; within a row of a block 16 lanes, then folded by halves; row by row, block by
 * block.  It follows from the shape, not from strides or threads.
 */
#define CK_ARGS_sgd_step(_)                     \
    _(OUT,     elem,   param,        "R* C")    \
    _(OPT_OUT, float,  buffer,       "R* C")    \
    _(IN,      elem,   grad,         "R* C")    \
    _(REAL,    double, scale,        "")        \
    _(REAL,    double, lr,           "")        \
    _(REAL,    double, momentum,     "")        \
    _(REAL,    double, dampening,    "")        \
    _(REAL,    double, weight_decay, "")        \
    _(FLAG,    int,    nesterov,     "")        \
    _(FLAG,    int,    maximize,     "")        \
    _(FLAG,    int,    first,        "")        \
    _(FLAG,    int,    check,        "")        \
    _(SIZE,    size_t, R,            "")        \
    _(SIZE,    size_t, C,            "")
CK_DECLARE(sgd_step)

#define CK_ARGS_sum_of_squares(_)               \
    _(OUTV,    double, sum,          "S")       \
    _(IN,      elem,   x,            "R* C")    \
    _(FLAG,    int,    accumulate,   "")        \
    _(SIZE,    size_t, R,            "")        \
    _(SIZE,    size_t, C,            "")        \
    _(SIZE,    size_t, S,            "")
CK_DECLARE(sum_of_squares) /* a task's work is its sum, a double */
#endif

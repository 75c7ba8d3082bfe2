#ifndef CK_CLIP_GRAD_NORM_H
#define CK_CLIP_GRAD_NORM_H
#include "ops/op.h"
/*
 * sum_of_squares -- sum[0] = (sum[0] when `accumulate`, else 0) + sum over all elements of all x[j] of x^2, in double
 *
 * Order: tasks as ops/tensor_list.h cuts them; of a tensor within a task 16 lanes, by the number of the element, then
 * folded by halves; tensor by tensor, task by task.  It follows from the shapes, not from strides or threads.  Squares
 * of float cannot overflow in double.
 *
 * grad_scale -- x[j] = scale * x[j], in float32, rounded once; nothing is touched when scale = 1
 */
#define CK_ARGS_sum_of_squares(_)                   \
    _(OUTV,     double, sum,        "S")            \
    _(LIST_IN,  elem,   grads,      "R* C")         \
    _(FLAG,     int,    accumulate, "")             \
    _(SIZE,     size_t, S,          "")             \
    _(SIZE,     size_t, N,          "")             \
    _(SIZES,    size_t, R,          "")             \
    _(SIZES,    size_t, C,          "")             \
    _(OWN,      size_t, start,      "")
CK_DECLARE(sum_of_squares) /* a task's work is its sum, a double */

#define CK_ARGS_grad_scale(_)                       \
    _(LIST_OUT, elem,   grads,      "R* C")         \
    _(REAL,     double, scale,      "")             \
    _(SIZE,     size_t, N,          "")             \
    _(SIZES,    size_t, R,          "")             \
    _(SIZES,    size_t, C,          "")             \
    _(OWN,      size_t, start,      "")
CK_DECLARE(grad_scale)
#endif

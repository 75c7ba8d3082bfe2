#ifndef CK_SGD_H
#define CK_SGD_H
#include "ops/op.h"
/*
 * sgd_step -- one step of stochastic gradient descent on many tensors, in the order of torch.optim.SGD
 *
 * For every element of every tensor j:
 *
 *     g        = scale * grads[j]                              scale clips the norm of all gradients together
 *     g        = -g                                            when `maximize`
 *     g        = g + weight_decay * params[j]                  unless weight_decay = 0
 *     momentum = 0:  d = g
 *     otherwise:     b = g                                     on the `first` step
 *                    b = momentum * b + (1 - dampening) * g    on later ones;  momentum_buffer[j] = b
 *                    d = g + momentum * b when `nesterov`, else b
 *     params[j] = params[j] - lr * d
 *     zeroed[j] = 0                                            where given: grads itself, for the next accumulation
 *
 * In float32 whatever the dtype of the parameters; each line rounds as it is written: momentum * b first, every sum with
 * a fused multiply-add where the instruction set has it; a parameter is rounded to its dtype once.  Numbers are rounded
 * to float once; 1 - dampening is formed in double.  With `check` nothing is done: what the call would refuse is
 * refused.  Work is cut as ops/tensor_list.h says; `start` is its own.
 */
#define CK_ARGS_sgd_step(_)                                 \
    _(LIST_OUT,      elem,   params,          "R* C")       \
    _(OPT_LIST_OUT,  float,  momentum_buffer, "R* C")       \
    _(OPT_LIST_OVER, either, zeroed,          "R* C")       \
    _(LIST_IN,       either, grads,           "R* C")       \
    _(REAL,          double, scale,           "")           \
    _(REAL,          double, lr,              "")           \
    _(REAL,          double, momentum,        "")           \
    _(REAL,          double, dampening,       "")           \
    _(REAL,          double, weight_decay,    "")           \
    _(FLAG,          int,    nesterov,        "")           \
    _(FLAG,          int,    maximize,        "")           \
    _(FLAG,          int,    first,           "")           \
    _(FLAG,          int,    check,           "")           \
    _(SIZE,          size_t, N,               "")           \
    _(SIZES,         size_t, R,               "")           \
    _(SIZES,         size_t, C,               "")           \
    _(OWN,           size_t, start,           "")
CK_DECLARE(sgd_step)
#endif

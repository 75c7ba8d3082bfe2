#ifndef CK_ADAMW_H
#define CK_ADAMW_H
#include "ops/op.h"
/*
 * adamw_step -- one step of AdamW on many tensors, in the order of torch.optim.AdamW
 *
 * For every element of every tensor j, with t = step[j], the number of this step, 1 for the first:
 *
 *     g = scale * grads[j], negated when `maximize`          scale clips the norm of all gradients together
 *     p = params[j] * (1 - lr * weight_decay)                unless weight_decay = 0
 *     m = exp_avg[j] + (1 - beta1) * (g - exp_avg[j])
 *     v = beta2 * exp_avg_sq[j] + (1 - beta2) * g * g
 *     u = v, or max(max_exp_avg_sq[j], v) where that list is given; a NaN stays
 *     d = sqrt(u) / sqrt(1 - beta2^t) + eps
 *     params[j] = p - lr / (1 - beta1^t) * (m / d)
 *     exp_avg[j] = m, exp_avg_sq[j] = v, max_exp_avg_sq[j] = u
 *     zeroed[j] = 0                                          where given: grads itself, for the next accumulation
 *
 * In float32 whatever the dtype of the parameters, every operation rounded as it is written from left to right, a sum
 * with a product as a fused multiply-add where the instruction set has it; a parameter is rounded to its dtype once.
 * Numbers, the bias corrections among them, are formed in double and rounded to float once.  Where 1 - beta1 is 0.5 or
 * more, m = g + (-beta1) * (g - exp_avg[j]), which rounds less then.  With `check` nothing is done: what the call would
 * refuse is refused.  Work is cut as ops/tensor_list.h says; `start` and `factor` (lr / (1 - beta1^t) and
 * sqrt(1 - beta2^t) of every tensor) are its own.
 */
#define CK_ARGS_adamw_step(_)                               \
    _(LIST_OUT,      elem,   params,         "R* C")        \
    _(LIST_OUT,      float,  exp_avg,        "R* C")        \
    _(LIST_OUT,      float,  exp_avg_sq,     "R* C")        \
    _(OPT_LIST_OUT,  float,  max_exp_avg_sq, "R* C")        \
    _(OPT_LIST_OVER, either, zeroed,         "R* C")        \
    _(LIST_IN,       either, grads,          "R* C")        \
    _(INV,           double, step,           "N")           \
    _(REAL,          double, scale,          "")            \
    _(REAL,          double, lr,             "")            \
    _(REAL,          double, beta1,          "")            \
    _(REAL,          double, beta2,          "")            \
    _(REAL,          double, eps,            "")            \
    _(REAL,          double, weight_decay,   "")            \
    _(FLAG,          int,    maximize,       "")            \
    _(FLAG,          int,    check,          "")            \
    _(SIZE,          size_t, N,              "")            \
    _(SIZES,         size_t, R,              "")            \
    _(SIZES,         size_t, C,              "")            \
    _(OWN,           size_t, start,          "")            \
    _(OWN,           double, factor,         "")
CK_DECLARE(adamw_step)
#endif

#ifndef CK_LINEAR_DZ_H
#define CK_LINEAR_DZ_H
#include "ops/gemm.h"
/*
 * linear_dz -- the gradient before linear's activation
 *
 *     dz[r,n] = dy[r,n] * activation'(pre[r,n])
 *
 * The slopes are those of ops/activation.h.  Without activation: a copy.
 */
#define CK_ARGS_linear_dz(_)                       \
    _(OUT,    weight,  dz,         "R* N")         \
    _(IN,     elem,    dy,         "R* N")         \
    _(OPT_IN, elem,    pre,        "R* N")         \
    _(INT,    int64_t, activation, "")             \
    _(SIZE,   size_t,  R,          "")             \
    _(SIZE,   size_t,  N,          "")
CK_DECLARE(linear_dz)
#endif

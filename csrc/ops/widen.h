#ifndef CK_WIDEN_H
#define CK_WIDEN_H
#include "ops/op.h"
/*
 * widen -- 16-bit weights as floats
 *
 *     y[c] = x[c]
 *
 * A norm's weight may be of the call's dtype, or float32 beside 16-bit rows (type `weight`).  The op calls
 * ck_widen_weight() before its tasks run, so that its kernels know one kind of weight.
 */
#define CK_ARGS_widen(_)               \
    _(OUTV, float,  y,    "C")         \
    _(IN,   elem,   x,    "C")         \
    _(SIZE, size_t, C,    "")
CK_DECLARE(widen)

/* Makes x, C elements or absent, floats: in `*taken`, which ck_give(*taken, C * sizeof(float)) gives back, or nothing
 * is taken where they are floats already. */
ck_status ck_widen_weight(const ck_kernels *k, ck_array *x, size_t C, float **taken);
#endif

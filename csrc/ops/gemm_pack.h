#ifndef CK_GEMM_PACK_H
#define CK_GEMM_PACK_H
#include "ops/gemm.h"
/*
 * gemm_pack -- the right operand of a product in the order in which every kernel reads it
 *
 *     packed[p,k,l] = B[k, 16p + l], zero where 16p + l >= N
 *
 * B[k,n] is b[k,n], or b[n,k] with transpose_b (a weight).  The same for every instruction set, and of the dtype of b:
 * 16 bits stay 16 bits.
 */
#define CK_ARGS_gemm_pack(_)                       \
    _(OUTV,    elem,   packed,      "P K L")       \
    _(IN,      elem,   b,           "K N")         \
    _(FLAG,    int,    transpose_b, "")            \
    _(SIZE,    size_t, K,           "")            \
    _(SIZE,    size_t, N,           "")
CK_DECLARE(gemm_pack)
#endif

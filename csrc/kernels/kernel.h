#ifndef CK_KERNEL_H
#define CK_KERNEL_H
/*
 * Included first by every file of kernels/ and reference/.  Each is compiled once per instruction set and dtype,
 * with -DCK_ISA=<name> -DCK_DTYPE=<name>, and
 *
 *     CK_KERNEL(softmax_fwd)
 *     {
 *         for (size_t r = task.begin; r < task.end; r++) ...
 *     }
 *
 * defines ck_softmax_fwd_bf16_avx2, with `a` its arguments and `task` its share of them.  A kernel is serial, does
 * not allocate and cannot fail.  Nothing but CK_KERNEL names leaves a kernel's object: a helper compiled with
 * AVX-512 flags could otherwise be the copy the linker keeps for everyone.  Each includes the header of its own op and
 * no other's, so that a new op compiles its own kernels alone.
 */
#include "faults.h"
#include "ops/op.h"

#define CK_NAME__(op, dtype, isa) ck_##op##_##dtype##_##isa
#define CK_NAME_(op, dtype, isa) CK_NAME__(op, dtype, isa)
#define CK_NAME(op) CK_NAME_(op, CK_DTYPE, CK_ISA)

#define CK_KERNEL(op)                                              \
    static void op##_body(const struct ck_##op *a, ck_task task);  \
    ck_kernel CK_NAME(op);                                         \
    void CK_NAME(op)(const void *args, ck_task task)               \
    {                                                              \
        op##_body(args, task);                                     \
    }                                                              \
    static void op##_body(const struct ck_##op *a, ck_task task)
#endif

/*
 * The kernels of this pass: one table per instruction set and dtype.  A set that adds a matrix unit to another one, CK_REST,
 * has that one's kernels, and with CK_MATRIX_UNIT those of tiles.def as well.
 */
#include "kernels/kernel.h"
#include "ops/ops.h"

#define CK_STRING_(x) #x
#define CK_STRING(x) CK_STRING_(x)
#define CK_DTYPE_f32 CK_F32
#define CK_DTYPE_bf16 CK_BF16
#define CK_DTYPE_f16 CK_F16
#define CK_ENUM_(d) CK_DTYPE_##d
#define CK_ENUM(d) CK_ENUM_(d)

#ifndef CK_REST
#define CK_REST CK_ISA
#endif
#define CK_NAME_OF_REST(op) CK_NAME_(op, CK_DTYPE, CK_REST)

#define CK_OP(op, called) ck_kernel CK_NAME_OF_REST(op);
#define CK_LAYER(op, called)
#define CK_PART(op) ck_kernel CK_NAME_OF_REST(op);
#include "ops.def"
#ifdef CK_MATRIX_UNIT
#define CK_TILED(op) ck_kernel CK_NAME(op);
#include "tiles.def"
#endif

extern const ck_kernels CK_NAME(kernels);
const ck_kernels CK_NAME(kernels) = {
    .isa = CK_STRING(CK_ISA),
    .dtype = CK_ENUM(CK_DTYPE),
    .kernel = {
#define CK_OP(op, called) [CK_NR_##op] = CK_NAME_OF_REST(op),
#define CK_LAYER(op, called)
#define CK_PART(op) [CK_NR_##op] = CK_NAME_OF_REST(op),
#include "ops.def"
    },
#ifdef CK_MATRIX_UNIT
    .tiles = {
#define CK_TILED(op) [CK_TILES_##op] = CK_NAME(op),
#include "tiles.def"
    },
#endif
};

#ifndef CK_OP_H
#define CK_OP_H
/*
 * How an op is declared: once, in its own header, as a list of arguments, outputs first.
 *
 *     #define CK_ARGS_rms_norm_fwd(_)                 \
 *         _(OVER,     elem,   y,      "R* C")         \
 *         _(OPT_OUTV, float,  rstd,   "R*")           \
 *         _(IN,       elem,   x,      "R* C")         \
 *         _(OPT_IN,   weight, weight, "C")            \
 *         _(REAL,     double, eps,    "")             \
 *         _(SIZE,     size_t, R,      "")             \
 *         _(SIZE,     size_t, C,      "")
 *     CK_DECLARE(rms_norm_fwd)
 *
 * From it come `struct ck_rms_norm_fwd`, which kernels and C callers use, the C function of the same name, the checks,
 * docstring and signature of the Python function, and the table below.
 *
 * Kinds.  IN is read, OUT is written and overlaps nothing, OVER is written and may be an IN, whole: these are ck_array,
 * with strides.  INV and OUTV are the same as plain C-contiguous pointers (weights, statistics).  OPT_ before a kind:
 * may be absent.  MASK is an IN that broadcasts to its shape, boolean or elem.  REAL, INT and FLAG are numbers.
 * SIZE is filled in from the shapes.  An INT named by one letter is that size for the shapes that follow it, outputs
 * included; the shape it is declared with is its largest value: _(INT, int64_t, k, "C") is a K of 0 to C.
 *
 * Lists.  LIST_IN, LIST_OUT, OPT_LIST_OUT and OPT_LIST_OVER are lists of arrays, all of one length: N ck_arrays in a
 * row, NULL where absent.  Member j of each list fits the shape with sizes of its own: SIZES are N of them, one a
 * member.  An OPT_LIST_OVER may be a LIST_IN, member by member.  OWN is what the op fills in for its kernels.
 *
 * Shapes.  One letter is one size all over the call, "2K" is twice K, "R*" is any number of axes, and R their
 * product.  A shape without a star keeps its axes; one with a star has them merged as far as strides allow, and
 * ck_row() finds a row by its number.  `elem` is the dtype of the call: float, ck_bf16 or ck_f16 where kernels are
 * compiled.  `ids` is int32 or int64: see ck_id().  `weight` is elem, or float32 beside 16-bit elements: the op makes
 * floats of it before its tasks run (ops/widen.h), so that kernels see floats alone.  It is contiguous.
 * `either` is the same choice, member by member of a list, and kernels see it: .width tells.
 */
#include "runtime/error.h"
#include "runtime/task.h"

typedef struct { uint16_t bits; } ck_bf16;
typedef struct { uint16_t bits; } ck_f16;

#ifdef CK_DTYPE /* in a kernel's pass: f32, bf16 or f16 */
#define CK_ELEM_f32 float
#define CK_ELEM_bf16 ck_bf16
#define CK_ELEM_f16 ck_f16
#define CK_ELEM_(d) CK_ELEM_##d
#define CK_ELEM(d) CK_ELEM_(d)
typedef CK_ELEM(CK_DTYPE) elem;
#define CK_IS_FLOAT (sizeof(elem) == sizeof(float))
#else
typedef void elem;
#endif
typedef int64_t ids; /* or int32_t: ck_array.width tells */
typedef void either; /* elem or float: ck_array.width tells */
typedef void weight; /* elem or float: ck_array.width tells; kernels get floats */

enum { CK_MAX_AXES = 8 };

/* An array whose last axis is contiguous, unless its shape is one letter, "R*" or "T".  NULL data: absent. */
typedef struct {
    void *data;
    size_t width;                    /* bytes of an element; of a type that may be one of two, this tells which */
    size_t n;                        /* leading axes: all but the last, or all of "R*" or "T" */
    size_t size[CK_MAX_AXES];
    ptrdiff_t stride[CK_MAX_AXES];   /* bytes */
} ck_array;

/* Where row r begins, counting rows in C order over the leading axes. */
static inline void *
ck_row(const ck_array *x, size_t r)
{
    ptrdiff_t at = 0;
    for (size_t i = x->n; i-- > 1; r /= x->size[i])
        at += (ptrdiff_t)(r % x->size[i]) * x->stride[i];
    return (char *)x->data + at + (x->n != 0 ? (ptrdiff_t)r * x->stride[0] : 0);
}

/* The same for a mask, which keeps its last axis: of any stride, 0 where it broadcasts. */
static inline const void *
ck_mask_row(const ck_array *mask, size_t r)
{
    ptrdiff_t at = 0;
    for (size_t i = mask->n - 1; i-- > 0; r /= mask->size[i])
        at += (ptrdiff_t)(r % mask->size[i]) * mask->stride[i];
    return (const char *)mask->data + at;
}

/* Element r of an array of ids, in C order. */
static inline int64_t
ck_id(const ck_array *x, size_t r)
{
    const void *at = ck_row(x, r);
    return x->width == sizeof(int64_t) ? *(const int64_t *)at : *(const int32_t *)at;
}

/* For C callers: R contiguous rows of C elements of `width` bytes, and `n` ids in a row. */
static inline ck_array
ck_rows(const void *data, size_t R, size_t C, size_t width)
{
    return (ck_array){(void *)data, width, 1, {R}, {(ptrdiff_t)(C * width)}};
}

static inline ck_array
ck_ids(const int64_t *data, size_t n)
{
    return (ck_array){(void *)data, sizeof *data, 1, {n}, {sizeof *data}};
}

/* Whether its rows of C elements lie end to end. */
static inline bool
ck_is_flat(const ck_array *x, size_t C)
{
    return x->n == 0 || (x->n == 1 && (x->size[0] <= 1 || x->stride[0] == (ptrdiff_t)(C * x->width)));
}

typedef enum {
    CK_IN, CK_OUT, CK_OVER, CK_OPT_IN, CK_OPT_OUT, CK_MASK,
    CK_INV, CK_OUTV, CK_OPT_INV, CK_OPT_OUTV,
    CK_LIST_IN, CK_LIST_OUT, CK_OPT_LIST_OUT, CK_OPT_LIST_OVER,
    CK_REAL, CK_INT, CK_FLAG, CK_SIZE, CK_SIZES, CK_OWN
} ck_kind;
typedef enum {
    CK_TYPE_elem, CK_TYPE_weight, CK_TYPE_either, CK_TYPE_float, CK_TYPE_double, CK_TYPE_ids, CK_TYPE_int64_t, CK_TYPE_uint8_t,
    CK_TYPE_int, CK_TYPE_size_t, CK_TYPE_ck_kv_cache
} ck_type;

typedef struct {
    ck_kind kind;
    ck_type type;
    const char *name;
    const char *shape;
    size_t offset; /* of the field */
} ck_param;

#define CK_FIELD_IN(type, name) ck_array name;
#define CK_FIELD_OUT(type, name) ck_array name;
#define CK_FIELD_OVER(type, name) ck_array name;
#define CK_FIELD_OPT_IN(type, name) ck_array name;
#define CK_FIELD_OPT_OUT(type, name) ck_array name;
#define CK_FIELD_MASK(type, name) ck_array name;
#define CK_FIELD_INV(type, name) const type *name;
#define CK_FIELD_OUTV(type, name) type *name;
#define CK_FIELD_OPT_INV(type, name) const type *name;
#define CK_FIELD_OPT_OUTV(type, name) type *name;
#define CK_FIELD_LIST_IN(type, name) const ck_array *name;
#define CK_FIELD_LIST_OUT(type, name) const ck_array *name;
#define CK_FIELD_OPT_LIST_OUT(type, name) const ck_array *name;
#define CK_FIELD_OPT_LIST_OVER(type, name) const ck_array *name;
#define CK_FIELD_REAL(type, name) type name;
#define CK_FIELD_INT(type, name) type name;
#define CK_FIELD_FLAG(type, name) type name;
#define CK_FIELD_SIZE(type, name) type name;
#define CK_FIELD_SIZES(type, name) const type *name;
#define CK_FIELD_OWN(type, name) const type *name;
#define CK_FIELD(kind, type, name, shape) CK_FIELD_##kind(type, name)

#define CK_DECLARE(op)                                                           \
    struct ck_##op {                                                             \
        CK_ARGS_##op(CK_FIELD)                                                   \
    };                                                                           \
    ck_status ck_##op(const ck_kernels *k, const struct ck_##op *a);

/* Defines the C function of an op, which cuts it into tasks: CK_RUN(rms_norm_fwd) { ... }, with `a` its arguments,
 * `k` the kernels to use. */
#define CK_RUN(op) ck_status ck_##op(const ck_kernels *k, const struct ck_##op *a)

#endif

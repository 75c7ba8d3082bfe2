#ifndef CK_ARRAYS_H
#define CK_ARRAYS_H
/*
 * Fills an op's argument struct from Python objects, or says what does not fit; makes the
 * outputs that were not given.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "ops/op.h"

enum { CK_MAX_PARAMS = 144, CK_MAX_ARGS_BYTES = 12288, CK_MAX_SHAPE = 6 };

/* One axis of a declared shape: "K" is {1,'K',false}, "2K" is {2,'K',false}, "R*" is {1,'R',true}. */
typedef struct {
    unsigned char times;
    char letter;
    bool star;
} ck_axis;

typedef struct {
    int n;    /* axes as declared */
    int star; /* which of them has the star, -1: none */
    ck_axis axis[CK_MAX_SHAPE];
} ck_shape;

typedef struct {
    const char *name;   /* of the C function: rms_norm_fwd */
    const char *called; /* what the user calls: rms_norm */
    const ck_param *params;
    int n_params;       /* sizes included */
    int n_given;        /* without them */
    int n_written;      /* outputs, which come first */
    ck_shape shapes[CK_MAX_PARAMS];
    ck_status (*run)(const ck_kernels *, const void *args);
} ck_op;

/* A call on its way.  `object` is what the caller gets back, `array` what the op works on. */
typedef struct {
    const ck_op *op;
    size_t size[26];
    uint32_t known;                /* letters that have a size, one bit each */
    int star_of[26];               /* the parameter that said what "R*" is */
    bool has_dtype;
    ck_dtype dtype;
    PyObject *object[CK_MAX_PARAMS], *array[CK_MAX_PARAMS]; /* owned; NULL where absent; of a list, the list alone */
    size_t n_members;              /* of each list */
    PyObject **member;             /* owned: parameter i's array j at [i * n_members + j]; NULL without lists */
    void *list_room;               /* what the op sees of them */
} ck_call;

/* These return 0, or -1 with a Python exception set. */
int ck_arrays_init(PyObject *module);
void ck_op_prepare(ck_op *op); /* once, before the first call: shapes parsed, parameters counted */
int ck_call_begin(ck_call *call, const ck_op *op, PyObject *const *objects, Py_ssize_t n, void *args);

/* What the op returns: its outputs in order, None for one not wanted; alone if there is one. */
PyObject *ck_call_result(ck_call *call);
void ck_call_end(ck_call *call);
#endif

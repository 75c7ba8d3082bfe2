#ifndef CK_CALL_H
#define CK_CALL_H
/* What the files that take a call's arguments share: arrays.c (one argument, then all), shapes.c, overlap.c. */
#include "bindings/arrays.h"
#include "bindings/numpy.h"

static inline bool
ck_is_vector(const ck_param *p)
{
    return p->kind >= CK_INV && p->kind <= CK_OPT_OUTV;
}

static inline bool
ck_is_array(const ck_param *p)
{
    return p->kind <= CK_OPT_OUTV;
}

static inline bool
ck_is_list(const ck_param *p)
{
    return p->kind >= CK_LIST_IN && p->kind <= CK_OPT_LIST_OVER;
}

static inline bool
ck_is_optional(const ck_param *p)
{
    return p->kind == CK_OPT_IN || p->kind == CK_OPT_OUT || p->kind == CK_OPT_INV || p->kind == CK_OPT_OUTV || p->kind == CK_MASK
           || p->kind == CK_OPT_LIST_OUT || p->kind == CK_OPT_LIST_OVER;
}

static inline bool
ck_is_written(const ck_param *p)
{
    return p->kind == CK_OUT || p->kind == CK_OVER || p->kind == CK_OPT_OUT || p->kind == CK_OUTV || p->kind == CK_OPT_OUTV
           || (ck_is_list(p) && p->kind != CK_LIST_IN);
}

/* arrays.c: one array for parameter i, into its field; 0, or -1. */
int ck_take_array(ck_call *call, int i, PyObject *object, void *field);

/* lists.c: the lists of a call and the sizes of their members; 0, or -1. */
int ck_take_lists(ck_call *call, PyObject *const *objects, char *args);
void ck_drop_lists(ck_call *call);

/* What the user calls a parameter: outputs are given as out=, gradients as fields of it, and of a loss there is one. */
const char *ck_called(const ck_op *op, const ck_param *p, char *buffer, size_t n);

/* "rms_norm(): 'weight' <what>"; -1. */
int ck_refuse_param(PyObject *kind, const ck_op *op, const ck_param *p, const char *what);

/* Append to a text of `size` bytes; a tuple of dims the second. */
const char *ck_append(char *text, size_t size, const char *format, ...);
void ck_append_dims(char *text, size_t size, int n, const npy_intp *dims);

/* shapes.c: whether parameter i fits the sizes known so far, and what the op's struct gets of it.  0, or -1. */
int ck_take_shape(ck_call *call, int i, PyArrayObject *array);
int ck_take_mask(ck_call *call, int i, PyArrayObject *array, ck_array *field);
int ck_take_axes(const ck_call *call, int i, PyArrayObject *array, ck_array *field);

/* Where parameter i is an INT named by one letter, that size is its value.  0, or -1. */
int ck_take_size(ck_call *call, int i, const void *field);

/* The shape that parameter i must have: how many axes, or -1 when no argument gives one. */
int ck_expected_shape(const ck_call *call, int i, npy_intp *dims);

/* overlap.c */
int ck_overlap_init(void);                     /* 0, or -1 */
bool ck_overlaps_itself(PyArrayObject *array); /* elements of it share memory with each other */
int ck_refuse_overlap(const ck_call *call);    /* 0, or -1 */
int ck_refuse_overlap_of_lists(const ck_call *call);
#endif

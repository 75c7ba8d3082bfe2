#ifndef CK_DTYPES_H
#define CK_DTYPES_H
/* The dtypes of elements: their NumPy types and names.  bfloat16 is the ml_dtypes package's, imported when it is met. */
#include "bindings/call.h"

/* The dtype of a NumPy type number, or -1: not one of elements. */
int ck_dtype_of(int type);

/* A new reference, or NULL with an exception set (bfloat16 without ml_dtypes). */
PyArray_Descr *ck_dtype_descr(ck_dtype dtype);

/* Whether the array has the type that the parameter is declared to have: 0, or -1 with a TypeError that names both.
 * The first elements of a call fix its dtype. */
int ck_take_type(ck_call *call, int i, PyArrayObject *array);

/* The type of an output that is to be made, or NULL with an exception set. */
PyArray_Descr *ck_type_to_make(const ck_call *call, int i);
#endif

#include "bindings/dtypes.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static const char *const names[CK_DTYPES] = {[CK_F32] = "float32", [CK_BF16] = "bfloat16", [CK_F16] = "float16"};

/*
 * ml_dtypes' bfloat16, kept for good; NULL with an exception set where there is none: a TypeError where the package is
 * not installed, else what its import has raised.
 */
static PyArray_Descr *
bfloat16(void)
{
    static _Atomic(PyArray_Descr *) kept;
    PyArray_Descr *descr = atomic_load(&kept);
    if (descr != NULL)
        return descr;
    PyObject *module = PyImport_ImportModule("ml_dtypes");
    PyObject *type = module != NULL ? PyObject_GetAttrString(module, "bfloat16") : NULL;
    if (type != NULL)
        PyArray_DescrConverter(type, &descr);
    Py_XDECREF(type);
    Py_XDECREF(module);
    if (descr == NULL) {
        if (module == NULL && PyErr_ExceptionMatches(PyExc_ModuleNotFoundError))
            PyErr_SetString(PyExc_TypeError, "bfloat16 arrays need the ml_dtypes package: pip install ml_dtypes");
        return NULL;
    }
    PyArray_Descr *none = NULL;
    if (!atomic_compare_exchange_strong(&kept, &none, descr)) {
        Py_DECREF((PyObject *)descr);
        descr = none;
    }
    return descr;
}

int
ck_dtype_of(int type)
{
    if (type == NPY_FLOAT32)
        return CK_F32;
    if (type == NPY_FLOAT16)
        return CK_F16;
    if (!PyTypeNum_ISUSERDEF(type))
        return -1;
    const PyArray_Descr *descr = bfloat16();
    if (descr == NULL)
        PyErr_Clear(); /* another package's type, then */
    return descr != NULL && descr->type_num == type ? CK_BF16 : -1;
}

PyArray_Descr *
ck_dtype_descr(ck_dtype dtype)
{
    if (dtype != CK_BF16)
        return PyArray_DescrFromType(dtype == CK_F16 ? NPY_FLOAT16 : NPY_FLOAT32);
    PyArray_Descr *descr = bfloat16();
    Py_XINCREF((PyObject *)descr);
    return descr;
}

/* The weight whose gradient parameter i is: "dweight" is that of "weight"; -1 for anything else, or where it is absent. */
static int
weight_of(const ck_call *call, int i)
{
    const ck_op *op = call->op;
    for (int j = 0; op->params[i].name[0] == 'd' && j < op->n_given; j++)
        if (strcmp(op->params[j].name, op->params[i].name + 1) == 0)
            return call->array[j] != NULL ? j : -1;
    return -1;
}

/* What an array of elements must be, by the arrays seen so far. */
static const char *
elements(const ck_call *call)
{
    return call->has_dtype ? names[call->dtype] : "float32, float16 or bfloat16";
}

static bool
is_elements(ck_call *call, int type)
{
    const int dtype = ck_dtype_of(type);
    if (dtype < 0 || (call->has_dtype && (ck_dtype)dtype != call->dtype))
        return false;
    call->has_dtype = true;
    call->dtype = (ck_dtype)dtype;
    return true;
}

/* A weight beside elements of 16 bits may be float32; its gradient has its type. */
static bool
is_weight(ck_call *call, int i, int type)
{
    const int like = ck_is_written(&call->op->params[i]) ? weight_of(call, i) : -1;
    if (like >= 0)
        return type == PyArray_TYPE((PyArrayObject *)call->array[like]);
    return type == NPY_FLOAT32 || is_elements(call, type);
}

int
ck_take_type(ck_call *call, int i, PyArrayObject *array)
{
    const ck_param *p = &call->op->params[i];
    const int type = PyArray_TYPE(array);
    char expected[96] = "float32", buffer[64];
    bool fits = false;

    switch (p->type) {
    case CK_TYPE_ids:
        fits = type == NPY_INT32 || type == NPY_INT64 || type == NPY_LONGLONG;
        strcpy(expected, "int32 or int64");
        break;
    case CK_TYPE_int64_t:
        fits = type == NPY_INT64 || type == NPY_LONGLONG;
        strcpy(expected, "int64");
        break;
    case CK_TYPE_uint8_t:
        fits = type == NPY_UINT8;
        strcpy(expected, "uint8");
        break;
    case CK_TYPE_double:
        fits = type == NPY_FLOAT64;
        strcpy(expected, "float64");
        break;
    case CK_TYPE_elem:
        snprintf(expected, sizeof expected, p->kind == CK_MASK ? "bool or %s" : "%s", elements(call));
        fits = (p->kind == CK_MASK && type == NPY_BOOL) || is_elements(call, type);
        break;
    case CK_TYPE_weight:
        if (ck_is_written(p) && weight_of(call, i) >= 0)
            strcpy(expected, "of its weight's dtype");
        else
            snprintf(expected, sizeof expected, call->has_dtype && call->dtype != CK_F32 ? "%s or float32" : "%s", elements(call));
        fits = is_weight(call, i, type);
        break;
    case CK_TYPE_either:
        snprintf(expected, sizeof expected, call->has_dtype && call->dtype != CK_F32 ? "%s or float32" : "%s", elements(call));
        fits = type == NPY_FLOAT32 || is_elements(call, type);
        break;
    default:
        fits = type == NPY_FLOAT32;
    }
    if (fits)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s(): '%s' must be %s, not %S", call->op->called,
                 ck_called(call->op, p, buffer, sizeof buffer), expected, PyArray_DESCR(array));
    return -1;
}

PyArray_Descr *
ck_type_to_make(const ck_call *call, int i)
{
    const ck_type type = call->op->params[i].type;
    const int like = type == CK_TYPE_weight ? weight_of(call, i) : -1;
    if (like >= 0) {
        PyArray_Descr *descr = PyArray_DESCR((PyArrayObject *)call->array[like]);
        Py_INCREF((PyObject *)descr);
        return descr;
    }
    if (type == CK_TYPE_elem || type == CK_TYPE_weight)
        return ck_dtype_descr(call->dtype);
    return PyArray_DescrFromType(type == CK_TYPE_double ? NPY_FLOAT64 : type == CK_TYPE_int64_t ? NPY_INT64
                                 : type == CK_TYPE_uint8_t  ? NPY_UINT8 : NPY_FLOAT32);
}

/* Tensors of other libraries, as NumPy arrays on the same memory. */
#include "bindings/dlpack.h"

#include "bindings/dtypes.h"

static PyObject *str_dlpack, *str_dlpack_device, *no_arguments, *latest; /* latest: {"max_version": (1, 0)} */

int
ck_dlpack_init(void)
{
    if (latest != NULL)
        return 0;
    str_dlpack = PyUnicode_InternFromString("__dlpack__");
    str_dlpack_device = PyUnicode_InternFromString("__dlpack_device__");
    no_arguments = PyTuple_New(0);
    latest = Py_BuildValue("{s:(ii)}", "max_version", 1, 0);
    return str_dlpack != NULL && str_dlpack_device != NULL && no_arguments != NULL && latest != NULL ? 0 : -1;
}

static void
release_tensor(PyObject *capsule)
{
    ck_dl_managed *managed = PyCapsule_GetPointer(capsule, "ckernels.dltensor");
    if (managed != NULL && managed->deleter != NULL)
        managed->deleter(managed);
}

static void
release_versioned(PyObject *capsule)
{
    ck_dl_versioned *managed = PyCapsule_GetPointer(capsule, "ckernels.dltensor_versioned");
    if (managed != NULL && managed->deleter != NULL)
        managed->deleter(managed);
}

/* A new reference, or NULL: with an exception set, or where NumPy has no such type. */
static PyArray_Descr *
numpy_type(ck_dl_type t)
{
    if (t.lanes != 1)
        return NULL;
    switch (t.code * 256 + t.bits) {
    case CK_DL_FLOAT * 256 + 16: return ck_dtype_descr(CK_F16);
    case CK_DL_BFLOAT * 256 + 16: return ck_dtype_descr(CK_BF16);
    case CK_DL_FLOAT * 256 + 32: return ck_dtype_descr(CK_F32);
    case CK_DL_FLOAT * 256 + 64: return PyArray_DescrFromType(NPY_FLOAT64);
    case CK_DL_INT * 256 + 32: return PyArray_DescrFromType(NPY_INT32);
    case CK_DL_INT * 256 + 64: return PyArray_DescrFromType(NPY_INT64);
    case CK_DL_INT * 256 + 8: return PyArray_DescrFromType(NPY_INT8);
    case CK_DL_UINT * 256 + 8: return PyArray_DescrFromType(NPY_UINT8);
    case CK_DL_BOOL * 256 + 8: return PyArray_DescrFromType(NPY_BOOL);
    default: return NULL;
    }
}

/* Its name, as far as there is one: "bfloat16", say. */
static void
refuse_type(ck_dl_type t, const char *op, const char *name)
{
    static const char *const kinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    const char *kind = t.code < sizeof kinds / sizeof *kinds ? kinds[t.code] : "of an unknown kind, ";
    PyErr_Format(PyExc_TypeError, "%s(): '%s' has dtype %s%d%s, which is not supported", op, name, kind, (int)t.bits,
                 t.lanes != 1 ? " in vectors" : "");
}

/* A NumPy array on the tensor's memory, which `owner` keeps alive.  Steals owner. */
static PyObject *
array_on(const ck_dl_tensor *t, bool writeable, PyObject *owner, const char *op, const char *name)
{
    npy_intp dims[NPY_MAXDIMS], strides[NPY_MAXDIMS];
    PyArray_Descr *type = numpy_type(t->dtype);
    const int bytes = t->dtype.bits / 8;

    if (type == NULL || t->ndim > NPY_MAXDIMS) {
        if (type == NULL && !PyErr_Occurred())
            refuse_type(t->dtype, op, name);
        else if (type != NULL)
            PyErr_Format(PyExc_TypeError, "%s(): '%s' has %d axes, more than %d", op, name, t->ndim, NPY_MAXDIMS);
        Py_XDECREF((PyObject *)type);
        Py_DECREF(owner);
        return NULL;
    }
    npy_intp step = bytes;
    for (int d = t->ndim; d-- > 0; step *= dims[d]) {
        dims[d] = (npy_intp)t->shape[d];
        strides[d] = t->strides != NULL ? (npy_intp)t->strides[d] * bytes : step;
    }
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, type, t->ndim, dims, strides,
                                           (char *)t->data + t->byte_offset, writeable ? NPY_ARRAY_WRITEABLE : 0, NULL);
    if (array == NULL)
        Py_DECREF(owner);
    else if (PyArray_SetBaseObject((PyArrayObject *)array, owner) < 0)
        Py_CLEAR(array);
    if (array != NULL)
        PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_UPDATE_ALL);
    return array;
}

/* What went wrong in the tensor's own methods, as a TypeError that names the argument. */
static PyObject *
refuse_tensor(const char *op, const char *name)
{
    PyObject *kind, *value, *trace;
    if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
        return NULL; /* a KeyboardInterrupt, say: none of our business */
    PyErr_Fetch(&kind, &value, &trace);
    PyErr_NormalizeException(&kind, &value, &trace);
    PyErr_Format(PyExc_TypeError, "%s(): '%s' does not lend its memory: %S", op, name, value);
    Py_XDECREF(kind);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return NULL;
}

static bool
is_on_cpu(PyObject *object, const char *op, const char *name)
{
    int device = 0, number = 0;
    PyObject *where = PyObject_CallMethodObjArgs(object, str_dlpack_device, NULL);
    if (where == NULL || !PyArg_ParseTuple(where, "ii", &device, &number)) {
        Py_XDECREF(where);
        return refuse_tensor(op, name) != NULL;
    }
    Py_DECREF(where);
    if (device != CK_DL_CPU)
        PyErr_Format(PyExc_TypeError, "%s(): '%s' is not in CPU memory (DLPack device %d)", op, name, device);
    return device == CK_DL_CPU;
}

/* The latest kind of capsule, which says whether the tensor may be written; the first kind from those who know no other. */
static PyObject *
ask(PyObject *object)
{
    PyObject *method = PyObject_GetAttr(object, str_dlpack);
    PyObject *capsule = method != NULL ? PyObject_Call(method, no_arguments, latest) : NULL;
    if (capsule == NULL && method != NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        capsule = PyObject_Call(method, no_arguments, NULL);
    }
    Py_XDECREF(method);
    return capsule;
}

PyObject *
ck_from_dlpack(PyObject *object, const char *op, const char *name)
{
    if (!is_on_cpu(object, op, name))
        return NULL;
    PyObject *capsule = ask(object), *owner = NULL, *array = NULL;
    if (capsule == NULL)
        return refuse_tensor(op, name);
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        ck_dl_versioned *managed = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        if (managed->major != 1)
            PyErr_Format(PyExc_TypeError, "%s(): '%s' speaks DLPack %d, and this is 1", op, name, (int)managed->major);
        else if ((owner = PyCapsule_New(managed, "ckernels.dltensor_versioned", release_versioned)) != NULL) {
            PyCapsule_SetName(capsule, "used_dltensor_versioned");
            array = array_on(&managed->tensor, !(managed->flags & CK_DL_READ_ONLY), owner, op, name);
        }
    }
    else if (PyCapsule_IsValid(capsule, "dltensor")) {
        ck_dl_managed *managed = PyCapsule_GetPointer(capsule, "dltensor");
        if ((owner = PyCapsule_New(managed, "ckernels.dltensor", release_tensor)) != NULL) {
            PyCapsule_SetName(capsule, "used_dltensor");
            array = array_on(&managed->tensor, true, owner, op, name);
        }
    }
    else
        PyErr_Format(PyExc_TypeError, "%s(): '%s' has a __dlpack__ that gives no tensor, but %R", op, name, capsule);
    Py_DECREF(capsule);
    return array;
}

#include "bindings/memory.h"

#include "bindings/dtypes.h"
#include "runtime/arena.h"

typedef struct {
    PyObject_HEAD
    void *data;
    size_t size;
} block_object;

static PyTypeObject *block_type;

static void
block_dealloc(PyObject *self)
{
    block_object *block = (block_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    ck_give(block->data, block->size);
    release(self);
    Py_DECREF(type);
}

static PyType_Slot block_slots[] = {
    {Py_tp_dealloc, block_dealloc},
    {Py_tp_doc, "Owner of a block of the arena; arrays refer to it as their base."},
    {0, NULL},
};
static PyType_Spec block_spec = {
    .name = "ckernels._ck.Block",
    .basicsize = sizeof(block_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = block_slots,
};

int
ck_memory_init(PyObject *module)
{
    if (block_type == NULL)
        block_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &block_spec, NULL);
    return block_type != NULL ? 0 : -1;
}

static PyObject *
block_new(size_t size, void **data)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(block_type, Py_tp_alloc);
    block_object *block = (block_object *)alloc(block_type, 0);
    if (block == NULL)
        return NULL;
    block->size = size;
    block->data = ck_take(size);
    if (block->data == NULL) {
        Py_DECREF(block);
        return PyErr_NoMemory();
    }
    *data = block->data;
    return (PyObject *)block;
}

PyObject *
ck_new_array(int ndim, const Py_ssize_t *dims, PyObject *dtype)
{
    PyArray_Descr *descr = (PyArray_Descr *)dtype;
    size_t size = (size_t)PyDataType_ELSIZE(descr);
    void *data = NULL;

    for (int d = 0; d < ndim; d++)
        if (__builtin_mul_overflow(size, (size_t)dims[d], &size) || size > (size_t)PTRDIFF_MAX) {
            Py_DECREF(descr);
            return PyErr_NoMemory();
        }
    PyObject *block = block_new(size, &data);
    if (block == NULL) {
        Py_DECREF(descr);
        return NULL;
    }
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, descr, ndim, dims, NULL, data, NPY_ARRAY_CARRAY, NULL);
    if (array == NULL)
        Py_DECREF(block);
    else if (PyArray_SetBaseObject((PyArrayObject *)array, block) < 0)
        Py_CLEAR(array);
    return array;
}

/* A shape: a sequence of sizes, or one size.  Returns how many, -1 with an exception set. */
static int
take_shape(PyObject *object, npy_intp *dims)
{
    PyObject *sizes = PySequence_Check(object) ? PySequence_Tuple(object) : PyTuple_Pack(1, object);
    const Py_ssize_t n = sizes != NULL ? PyTuple_Size(sizes) : 0;

    if (sizes == NULL && PyErr_ExceptionMatches(PyExc_TypeError))
        PyErr_Format(PyExc_TypeError, "empty(): 'shape' must be a sequence of integers, not %R", object);
    if (n > NPY_MAXDIMS)
        PyErr_Format(PyExc_ValueError, "empty(): 'shape' has %zd axes, more than %d", n, NPY_MAXDIMS);
    for (Py_ssize_t i = 0; i < n && !PyErr_Occurred(); i++) {
        PyObject *index = PyNumber_Index(PyTuple_GetItem(sizes, i));
        if (index == NULL)
            PyErr_Format(PyExc_TypeError, "empty(): 'shape' must hold integers, not %R", object);
        dims[i] = index != NULL ? PyLong_AsSsize_t(index) : -1;
        Py_XDECREF(index);
        if (index != NULL && PyErr_Occurred())
            PyErr_Format(PyExc_OverflowError, "empty(): 'shape' holds a size beyond 64 bits: %R", object);
        if (!PyErr_Occurred() && dims[i] < 0)
            PyErr_Format(PyExc_ValueError, "empty(): 'shape' has a negative size, %zd", (Py_ssize_t)dims[i]);
    }
    Py_XDECREF(sizes);
    return PyErr_Occurred() ? -1 : (int)n;
}

PyObject *
ck_py_empty(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    (void)module;
    npy_intp dims[NPY_MAXDIMS];
    PyArray_Descr *descr = NULL;

    if (n < 1 || n > 2) {
        PyErr_SetString(PyExc_TypeError, "empty() takes a shape and a dtype");
        return NULL;
    }
    const int ndim = take_shape(args[0], dims);
    if (ndim < 0)
        return NULL;
    if (n == 1)
        descr = PyArray_DescrFromType(NPY_FLOAT32);
    else if (PyUnicode_Check(args[1]) && PyUnicode_CompareWithASCIIString(args[1], "bfloat16") == 0) {
        if ((descr = ck_dtype_descr(CK_BF16)) == NULL)
            return NULL;
    }
    else if (!PyArray_DescrConverter(args[1], &descr)) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "empty(): 'dtype' must be a number type, not %R", args[1]);
        return NULL;
    }
    if (PyDataType_REFCHK(descr) || !PyArray_ISNBO(descr->byteorder)
        || !(PyTypeNum_ISNUMBER(descr->type_num) || PyTypeNum_ISBOOL(descr->type_num) || PyTypeNum_ISUSERDEF(descr->type_num))) {
        PyErr_Format(PyExc_TypeError, "empty(): 'dtype' must be a number type in native byte order, not %S", (PyObject *)descr);
        Py_DECREF((PyObject *)descr);
        return NULL;
    }
    PyObject *array = ck_new_array(ndim, dims, (PyObject *)descr);
    if (array == NULL && PyErr_ExceptionMatches(PyExc_MemoryError))
        PyErr_Format(PyExc_MemoryError, "empty(): no memory for 'shape' %R", args[0]);
    return array;
}

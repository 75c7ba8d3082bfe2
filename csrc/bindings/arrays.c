/* An op's arguments, from Python objects to its struct. */
#include "bindings/arrays.h"

#define CK_FILLS_NUMPY
#include "bindings/call.h"
#include "bindings/dlpack.h"
#include "bindings/dtypes.h"
#include "bindings/memory.h"

#include <stdio.h>
#include <string.h>

int
ck_arrays_init(PyObject *module)
{
    import_array1(-1);
    return ck_memory_init(module) < 0 || ck_overlap_init() < 0 || ck_dlpack_init() < 0 ? -1 : 0;
}

/* ---- refusals ---- */

const char *
ck_called(const ck_op *op, const ck_param *p, char *buffer, size_t n)
{
    const size_t length = strlen(op->name);
    if (strcmp(p->name, "dloss") == 0 || strcmp(p->name, "dout") == 0)
        return "dy";
    if (!ck_is_written(p))
        return p->name;
    if (strcmp(p->name, "y") == 0 || strcmp(p->name, "loss") == 0 || strcmp(p->name, "losses") == 0)
        return "out";
    if (length > 4 && strcmp(op->name + length - 4, "_bwd") == 0 && p->name[0] == 'd') {
        snprintf(buffer, n, "out.%s", p->name + 1);
        return buffer;
    }
    return p->name;
}

int
ck_refuse_param(PyObject *kind, const ck_op *op, const ck_param *p, const char *what)
{
    char buffer[64];
    PyErr_Format(kind, "%s(): '%s' %s", op->called, ck_called(op, p, buffer, sizeof buffer), what);
    return -1;
}

/* ---- one array ---- */

static int
refuse_layout(const ck_call *call, const ck_param *p, PyArrayObject *array)
{
    const int last = PyArray_NDIM(array) - 1;
    const bool ends_anywhere = p->kind == CK_MASK || call->op->shapes[p - call->op->params].n == 1;

    if (!PyArray_ISALIGNED(array) || PyArray_ISBYTESWAPPED(array))
        return ck_refuse_param(PyExc_ValueError, call->op, p, "must be aligned and of native byte order: pass a copy");
    if ((ck_is_vector(p) || p->type == CK_TYPE_weight) && !PyArray_IS_C_CONTIGUOUS(array))
        return ck_refuse_param(PyExc_ValueError, call->op, p, "must be contiguous: pass numpy.ascontiguousarray of it");
    if (!ck_is_vector(p) && !ends_anywhere && last >= 0 && PyArray_DIM(array, last) > 1 && PyArray_SIZE(array) > 0
        && PyArray_STRIDE(array, last) != PyArray_ITEMSIZE(array))
        return ck_refuse_param(PyExc_ValueError, call->op, p,
                      "must be contiguous along its last axis: pass numpy.ascontiguousarray of it");
    if (!ck_is_written(p))
        return 0;
    if (!PyArray_ISWRITEABLE(array))
        return ck_refuse_param(PyExc_ValueError, call->op, p, "is written, but read-only");
    if (ck_overlaps_itself(array))
        return ck_refuse_param(PyExc_ValueError, call->op, p, "is written, and its elements overlap each other");
    return 0;
}

static PyObject *
as_array(const ck_call *call, const ck_param *p, PyObject *object)
{
    if (PyArray_CheckExact(object)) {
        Py_INCREF(object);
        return object;
    }
    char buffer[64];
    const char *name = ck_called(call->op, p, buffer, sizeof buffer);
    if (PyArray_Check(object)) {
        if (PyObject_HasAttrString(object, "mask"))
            return PyErr_Format(PyExc_TypeError, "%s(): '%s' is a masked array: pass its data, or filled(value)",
                                call->op->called, name);
        Py_INCREF(object);
        return object;
    }
    if (PyObject_HasAttrString(object, "__dlpack__"))
        return ck_from_dlpack(object, call->op->called, name);
    PyErr_Format(PyExc_TypeError, "%s(): '%s' must be a NumPy array or lend its memory by __dlpack__, not %R",
                 call->op->called, name, (PyObject *)Py_TYPE(object));
    return NULL;
}

int
ck_take_array(ck_call *call, int i, PyObject *object, void *field)
{
    const ck_param *p = &call->op->params[i];

    PyArrayObject *array = (PyArrayObject *)(call->array[i] = as_array(call, p, object));
    if (array == NULL || ck_take_type(call, i, array) < 0 || refuse_layout(call, p, array) < 0)
        return -1;
    Py_INCREF(object);
    call->object[i] = object;
    if (p->kind == CK_MASK)
        return ck_take_mask(call, i, array, field);

    if (ck_take_shape(call, i, array) < 0)
        return -1;
    if (ck_is_vector(p)) {
        *(void **)field = PyArray_DATA(array);
        return 0;
    }
    return ck_take_axes(call, i, array, field);
}

/* The output that the caller did not give, shaped as declared. */
static int
make_array(ck_call *call, int i, void *field)
{
    npy_intp dims[NPY_MAXDIMS];
    const int n = ck_expected_shape(call, i, dims);
    PyArray_Descr *descr = n >= 0 ? ck_type_to_make(call, i) : NULL;
    if (descr == NULL)
        return -1;
    PyObject *array = ck_new_array(n, dims, (PyObject *)descr);
    if (array == NULL) {
        char what[256] = "finds no memory for its shape ";
        if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
            ck_append_dims(what, sizeof what, n, dims);
            PyErr_Clear();
            ck_refuse_param(PyExc_MemoryError, call->op, &call->op->params[i], what);
        }
        return -1;
    }
    const int taken = ck_take_array(call, i, array, field);
    Py_DECREF(array);
    return taken;
}

/* ---- numbers ---- */

static int
refuse_number(const ck_call *call, const ck_param *p, const char *what)
{
    if (PyErr_ExceptionMatches(PyExc_TypeError))
        return ck_refuse_param(PyExc_TypeError, call->op, p, what);
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
        return ck_refuse_param(PyExc_OverflowError, call->op, p, "is too large");
    return -1; /* what the object's own method raised */
}

static int
take_number(const ck_call *call, const ck_param *p, PyObject *object, void *field)
{
    if (p->kind == CK_REAL) {
        const double x = PyFloat_AsDouble(object);
        if (x == -1.0 && PyErr_Occurred())
            return refuse_number(call, p, "must be a number");
        if (p->type == CK_TYPE_float)
            *(float *)field = (float)x;
        else
            *(double *)field = x;
    }
    else if (p->kind == CK_INT) {
        PyObject *index = PyNumber_Index(object);
        if (index == NULL)
            return refuse_number(call, p, "must be an integer");
        const long long x = PyLong_AsLongLong(index);
        Py_DECREF(index);
        if (x == -1 && PyErr_Occurred())
            return ck_refuse_param(PyExc_OverflowError, call->op, p, "does not fit 64 bits");
        *(int64_t *)field = x;
    }
    else {
        const int yes = PyObject_IsTrue(object);
        if (yes < 0 && PyErr_ExceptionMatches(PyExc_ValueError)) /* an array of several elements, say */
            return ck_refuse_param(PyExc_TypeError, call->op, p, "must be true or false");
        if (yes < 0)
            return -1;
        *(int *)field = yes;
    }
    return 0;
}

/* ---- the call ---- */

static void
set_absent(const ck_param *p, void *field)
{
    if (ck_is_vector(p))
        *(void **)field = NULL;
    else
        ((ck_array *)field)->data = NULL;
}

/* None asks for a new array; where None says that the output is not wanted, True does. */
static bool
wants_new(const ck_param *p, PyObject *object)
{
    return object == (ck_is_optional(p) ? Py_True : Py_None);
}

/* Inputs first, so that the shapes of outputs are known when these are made. */
static int
take_all(ck_call *call, PyObject *const *objects, char *args)
{
    const ck_op *op = call->op;
    if (ck_take_lists(call, objects, args) < 0)
        return -1;
    for (int i = 0; i < op->n_given; i++) {
        const ck_param *p = &op->params[i];
        void *field = args + p->offset;
        if (ck_is_written(p) || ck_is_list(p))
            continue;
        if (!ck_is_array(p)) {
            if (take_number(call, p, objects[i], field) < 0 || ck_take_size(call, i, field) < 0)
                return -1;
        }
        else if (objects[i] == Py_None && ck_is_optional(p))
            set_absent(p, field);
        else if (ck_take_array(call, i, objects[i], field) < 0)
            return -1;
    }
    for (int i = 0; i < op->n_given; i++) {
        const ck_param *p = &op->params[i];
        void *field = args + p->offset;
        if (!ck_is_written(p) || ck_is_list(p))
            continue;
        if (objects[i] == Py_None && ck_is_optional(p))
            set_absent(p, field);
        else if ((wants_new(p, objects[i]) ? make_array(call, i, field) : ck_take_array(call, i, objects[i], field)) < 0)
            return -1;
    }
    for (int i = op->n_given; i < op->n_params; i++)
        if (op->params[i].kind == CK_SIZE)
            *(size_t *)(args + op->params[i].offset) = call->size[op->params[i].name[0] - 'A'];
        else if (op->params[i].kind == CK_OWN && call->list_room == NULL)
            *(void **)(args + op->params[i].offset) = NULL;
    return ck_refuse_overlap(call) < 0 ? -1 : ck_refuse_overlap_of_lists(call);
}

int
ck_call_begin(ck_call *call, const ck_op *op, PyObject *const *objects, Py_ssize_t n, void *args)
{
    call->op = op;
    call->known = 0;
    call->has_dtype = false;
    call->dtype = CK_F32;
    memset(call->object, 0, (size_t)op->n_given * sizeof *call->object);
    memset(call->array, 0, (size_t)op->n_given * sizeof *call->array);
    memset(call->size, 0, sizeof call->size);
    call->n_members = 0;
    call->member = NULL;
    call->list_room = NULL;
    if (n != op->n_given) {
        PyErr_Format(PyExc_TypeError, "%s() takes %d arguments, %zd given", op->name, op->n_given, n);
        return -1;
    }
    return take_all(call, objects, args);
}

PyObject *
ck_call_result(ck_call *call)
{
    const ck_op *op = call->op;
    PyObject *tuple = op->n_written == 1 ? NULL : PyTuple_New(op->n_written);

    if (tuple == NULL && op->n_written != 1)
        return NULL;
    for (int i = 0, j = 0; i < op->n_given; i++) {
        if (!ck_is_written(&op->params[i]))
            continue;
        PyObject *object = call->object[i] != NULL ? call->object[i] : Py_None;
        Py_INCREF(object);
        if (tuple == NULL)
            return object;
        PyTuple_SetItem(tuple, j++, object);
    }
    return tuple;
}

void
ck_call_end(ck_call *call)
{
    ck_drop_lists(call);
    for (int i = 0; i < call->op->n_given; i++) {
        Py_XDECREF(call->object[i]);
        Py_XDECREF(call->array[i]);
    }
}


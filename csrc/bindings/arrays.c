#include "bindings/arrays.h"

#include "bindings/dlpack.h"
#include "bindings/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

static PyObject *shares_memory; /* numpy.shares_memory */
static PyObject *str_dlpack, *str_dlpack_device;

int
ck_arrays_init(PyObject *module)
{
    import_array1(-1);
    if (ck_memory_init(module) < 0)
        return -1;
    PyObject *numpy = PyImport_ImportModule("numpy");
    if (numpy == NULL)
        return -1;
    shares_memory = PyObject_GetAttrString(numpy, "shares_memory");
    Py_DECREF(numpy);
    str_dlpack = PyUnicode_InternFromString("__dlpack__");
    str_dlpack_device = PyUnicode_InternFromString("__dlpack_device__");
    return shares_memory != NULL && str_dlpack != NULL && str_dlpack_device != NULL ? 0 : -1;
}

/* ---- declarations ---- */

static bool is_vector(const ck_param *p) { return p->kind >= CK_INV && p->kind <= CK_OPT_OUTV; }
static bool is_array(const ck_param *p) { return p->kind <= CK_OPT_OUTV; }
static bool is_optional(const ck_param *p)
{
    return p->kind == CK_OPT_IN || p->kind == CK_OPT_OUT || p->kind == CK_OPT_INV || p->kind == CK_OPT_OUTV || p->kind == CK_MASK;
}
static bool is_written(const ck_param *p)
{
    return p->kind == CK_OUT || p->kind == CK_OVER || p->kind == CK_OPT_OUT || p->kind == CK_OUTV || p->kind == CK_OPT_OUTV;
}

static void
parse_shape(ck_shape *shape, const char *text)
{
    *shape = (ck_shape){.star = -1};
    for (; *text != '\0'; text++) {
        if (*text == ' ')
            continue;
        ck_axis *axis = &shape->axis[shape->n];
        axis->times = 1;
        if (*text >= '1' && *text <= '9')
            axis->times = (unsigned char)(*text++ - '0');
        axis->letter = *text;
        axis->star = text[1] == '*';
        if (axis->star) {
            shape->star = shape->n;
            text++;
        }
        shape->n++;
    }
}

void
ck_op_prepare(ck_op *op)
{
    op->n_given = op->n_params;
    while (op->n_given > 0 && op->params[op->n_given - 1].kind == CK_SIZE)
        op->n_given--;
    op->n_written = 0;
    for (int i = 0; i < op->n_given; i++) {
        parse_shape(&op->shapes[i], op->params[i].shape);
        op->n_written += is_written(&op->params[i]);
    }
}

/* ---- refusals ---- */

/* What the user calls a parameter: outputs are given as out=, gradients as fields of it, and of a loss there is one. */
static const char *
called(const ck_op *op, const ck_param *p, char *buffer, size_t n)
{
    const size_t length = strlen(op->name);
    if (strcmp(p->name, "dloss") == 0 || strcmp(p->name, "dout") == 0)
        return "dy";
    if (!is_written(p))
        return p->name;
    if (strcmp(p->name, "y") == 0 || strcmp(p->name, "loss") == 0 || strcmp(p->name, "losses") == 0)
        return "out";
    if (length > 4 && strcmp(op->name + length - 4, "_bwd") == 0 && p->name[0] == 'd') {
        snprintf(buffer, n, "out.%s", p->name + 1);
        return buffer;
    }
    return p->name;
}

static int
refuse(PyObject *kind, const ck_op *op, const ck_param *p, const char *what)
{
    char buffer[64];
    PyErr_Format(kind, "%s(): '%s' %s", op->called, called(op, p, buffer, sizeof buffer), what);
    return -1;
}

static const char *
append(char *text, size_t size, const char *format, ...)
{
    const size_t length = strlen(text);
    va_list values;
    va_start(values, format);
    vsnprintf(text + length, size - length, format, values);
    va_end(values);
    return text;
}

static void
append_dims(char *text, size_t size, int n, const npy_intp *dims)
{
    append(text, size, "(");
    for (int i = 0; i < n; i++)
        append(text, size, i == 0 ? "%zd" : ", %zd", (Py_ssize_t)dims[i]);
    append(text, size, n == 1 ? ",)" : ")");
}

static int n_leading(const ck_call *call, int star_of) /* axes that the star of that parameter stands for */
{
    return PyArray_NDIM((PyArrayObject *)call->array[star_of]) - (call->op->shapes[star_of].n - 1);
}

static const npy_intp *
leading(const ck_call *call, int star_of)
{
    return PyArray_DIMS((PyArrayObject *)call->array[star_of]) + call->op->shapes[star_of].star;
}

/* "'sin' of shape (1, 31) does not fit [T, K], where T=1, K=32" */
static int
refuse_shape(const ck_call *call, uint32_t known, int i, PyArrayObject *array)
{
    const ck_shape *shape = &call->op->shapes[i];
    char text[512] = "of shape ", where[256] = "";

    append_dims(text, sizeof text, PyArray_NDIM(array), PyArray_DIMS(array));
    append(text, sizeof text, " does not fit [");
    for (int j = 0; j < shape->n; j++) {
        const ck_axis *axis = &shape->axis[j];
        const int letter = axis->letter - 'A';
        append(text, sizeof text, j == 0 ? "" : ", ");
        if (axis->star)
            append(text, sizeof text, "...");
        else if (axis->times == 1)
            append(text, sizeof text, "%c", axis->letter);
        else
            append(text, sizeof text, "%d%c", axis->times, axis->letter);
        if (!(known & (1u << letter)))
            continue;
        append(where, sizeof where, where[0] == '\0' ? ", where " : ", ");
        if (axis->star) {
            append(where, sizeof where, "...=");
            append_dims(where, sizeof where, n_leading(call, call->star_of[letter]), leading(call, call->star_of[letter]));
        }
        else
            append(where, sizeof where, "%c=%zu", axis->letter, call->size[letter]);
    }
    append(text, sizeof text, "]%s", where);
    return refuse(PyExc_ValueError, call->op, &call->op->params[i], text);
}

/* ---- shapes ---- */

static bool
agree(ck_call *call, const ck_axis *axis, size_t size)
{
    const int i = axis->letter - 'A';
    if (size % axis->times != 0)
        return false;
    if (call->known & (1u << i))
        return call->size[i] == size / axis->times;
    call->known |= 1u << i;
    call->size[i] = size / axis->times;
    return true;
}

/* "R*": any number of axes, but the same ones wherever the letter stands. */
static bool
agree_star(ck_call *call, int i, const ck_axis *axis, int n, const npy_intp *dims)
{
    const int letter = axis->letter - 'A';
    if (call->known & (1u << letter)) {
        const int of = call->star_of[letter];
        return n_leading(call, of) == n && memcmp(leading(call, of), dims, (size_t)n * sizeof *dims) == 0;
    }
    size_t product = 1;
    for (int d = 0; d < n; d++)
        product *= (size_t)dims[d];
    call->known |= 1u << letter;
    call->size[letter] = product;
    call->star_of[letter] = i;
    return true;
}

static bool
shape_fits(ck_call *call, int i, PyArrayObject *array)
{
    const ck_shape *shape = &call->op->shapes[i];
    const int ndim = PyArray_NDIM(array), extra = ndim - shape->n;
    const npy_intp *dims = PyArray_DIMS(array);

    if (shape->star < 0 ? extra != 0 : extra < -1)
        return false;
    for (int j = 0, d = 0; j < shape->n; j++) {
        const ck_axis *axis = &shape->axis[j];
        if (axis->star) {
            if (!agree_star(call, i, axis, extra + 1, dims + d))
                return false;
            d += extra + 1;
        }
        else if (!agree(call, axis, (size_t)dims[d++]))
            return false;
    }
    return true;
}

/* A mask broadcasts: missing axes in front, and axes of size 1, have stride 0. */
static int
take_mask(ck_call *call, int i, PyArrayObject *array, ck_array *field)
{
    const ck_shape *shape = &call->op->shapes[i];
    const int ndim = PyArray_NDIM(array), missing = shape->n - ndim;

    field->data = PyArray_DATA(array);
    field->width = (size_t)PyArray_ITEMSIZE(array);
    field->n = (size_t)shape->n;
    for (int j = 0; j < shape->n; j++) {
        const size_t wanted = call->size[shape->axis[j].letter - 'A'];
        const size_t size = missing < 0 ? 0 : j < missing ? 1 : (size_t)PyArray_DIM(array, j - missing);
        if (missing < 0 || (size != 1 && size != wanted))
            return refuse_shape(call, call->known, i, array);
        field->size[j] = wanted;
        field->stride[j] = size == 1 ? 0 : PyArray_STRIDE(array, j - missing);
    }
    return 0;
}

/* The leading axes and their strides; for a shape with a star, as few as describe the same rows. */
static int
take_axes(const ck_call *call, int i, PyArrayObject *array, ck_array *field)
{
    const ck_shape *shape = &call->op->shapes[i];
    const bool merge = shape->star >= 0, all = merge && shape->n == 1;
    const int n = all ? PyArray_NDIM(array) : PyArray_NDIM(array) - 1;
    size_t kept = 0;

    field->data = PyArray_DATA(array);
    field->width = (size_t)PyArray_ITEMSIZE(array);
    for (int d = 0; d < n; d++) {
        const size_t size = (size_t)PyArray_DIM(array, d);
        const ptrdiff_t stride = PyArray_STRIDE(array, d);
        if (merge && size == 1)
            continue;
        if (merge && kept > 0 && field->stride[kept - 1] == stride * (ptrdiff_t)size) {
            field->size[kept - 1] *= size;
            field->stride[kept - 1] = stride;
            continue;
        }
        if (kept == CK_MAX_AXES)
            return refuse(PyExc_ValueError, call->op, &call->op->params[i],
                          "has too many axes that cannot be merged: pass numpy.ascontiguousarray of it");
        field->size[kept] = size;
        field->stride[kept++] = stride;
    }
    field->n = kept;
    return 0;
}

/* ---- one array ---- */

static int
take_type(ck_call *call, const ck_param *p, PyArrayObject *array)
{
    const int type = PyArray_TYPE(array);
    const char *expected = "float32";

    if (p->type == CK_TYPE_ids) {
        if (type == NPY_INT32 || type == NPY_INT64 || type == NPY_LONGLONG)
            return 0;
        expected = "int32 or int64";
    }
    else if (p->type == CK_TYPE_int64_t) {
        if (type == NPY_INT64 || type == NPY_LONGLONG)
            return 0;
        expected = "int64";
    }
    else if (p->type == CK_TYPE_double) {
        if (type == NPY_FLOAT64)
            return 0;
        expected = "float64";
    }
    else if (p->kind == CK_MASK && type == NPY_BOOL) {
        return 0;
    }
    else if (p->type == CK_TYPE_elem && type == NPY_FLOAT32 && (!call->has_dtype || call->dtype == CK_F32)) {
        call->has_dtype = true;
        call->dtype = CK_F32;
        return 0;
    }
    else if (p->type == CK_TYPE_float && type == NPY_FLOAT32) {
        return 0;
    }
    if (p->kind == CK_MASK)
        expected = "bool or float32";
    char buffer[64];
    PyErr_Format(PyExc_TypeError, "%s(): '%s' must be %s, not %S", call->op->called,
                 called(call->op, p, buffer, sizeof buffer), expected, PyArray_DESCR(array));
    return -1;
}

/* Whether elements of an output would share memory with each other (a broadcast view, say). */
static bool
overlaps_itself(PyArrayObject *array)
{
    npy_intp reach = PyArray_ITEMSIZE(array); /* bytes that the axes seen so far span */
    uint64_t seen = 0;
    if (PyArray_SIZE(array) == 0)
        return false;
    for (int round = 0; round < PyArray_NDIM(array); round++) { /* axes by ascending stride */
        int next = -1;
        for (int d = 0; d < PyArray_NDIM(array); d++)
            if (!(seen >> d & 1) && (next < 0 || Py_ABS(PyArray_STRIDE(array, d)) < Py_ABS(PyArray_STRIDE(array, next))))
                next = d;
        seen |= (uint64_t)1 << next;
        if (PyArray_DIM(array, next) == 1)
            continue;
        if (Py_ABS(PyArray_STRIDE(array, next)) < reach)
            return true;
        reach += Py_ABS(PyArray_STRIDE(array, next)) * (PyArray_DIM(array, next) - 1);
    }
    return false;
}

static int
refuse_layout(const ck_call *call, const ck_param *p, PyArrayObject *array)
{
    const int last = PyArray_NDIM(array) - 1;
    const bool ends_anywhere = p->kind == CK_MASK || call->op->shapes[p - call->op->params].n == 1;

    if (!PyArray_ISALIGNED(array) || PyArray_ISBYTESWAPPED(array))
        return refuse(PyExc_ValueError, call->op, p, "must be aligned and of native byte order: pass a copy");
    if (is_vector(p) && !PyArray_IS_C_CONTIGUOUS(array))
        return refuse(PyExc_ValueError, call->op, p, "must be contiguous: pass numpy.ascontiguousarray of it");
    if (!is_vector(p) && !ends_anywhere && last >= 0 && PyArray_DIM(array, last) > 1 && PyArray_SIZE(array) > 0
        && PyArray_STRIDE(array, last) != PyArray_ITEMSIZE(array))
        return refuse(PyExc_ValueError, call->op, p,
                      "must be contiguous along its last axis: pass numpy.ascontiguousarray of it");
    if (!is_written(p))
        return 0;
    if (!PyArray_ISWRITEABLE(array))
        return refuse(PyExc_ValueError, call->op, p, "is written, but read-only");
    if (overlaps_itself(array))
        return refuse(PyExc_ValueError, call->op, p, "is written, and its elements overlap each other");
    return 0;
}

static PyObject *
as_array(const ck_call *call, const ck_param *p, PyObject *object)
{
    if (PyArray_Check(object)) {
        Py_INCREF(object);
        return object;
    }
    char buffer[64];
    const char *name = called(call->op, p, buffer, sizeof buffer);
    if (PyObject_HasAttr(object, str_dlpack))
        return ck_from_dlpack(object, call->op->called, name);
    PyErr_Format(PyExc_TypeError, "%s(): '%s' must be a NumPy array or lend its memory by __dlpack__, not %R",
                 call->op->called, name, (PyObject *)Py_TYPE(object));
    return NULL;
}

static int
take_array(ck_call *call, int i, PyObject *object, void *field)
{
    const ck_param *p = &call->op->params[i];

    PyArrayObject *array = (PyArrayObject *)(call->array[i] = as_array(call, p, object));
    if (array == NULL || take_type(call, p, array) < 0 || refuse_layout(call, p, array) < 0)
        return -1;
    Py_INCREF(object);
    call->object[i] = object;
    if (p->kind == CK_MASK)
        return take_mask(call, i, array, field);

    const uint32_t known = call->known;
    if (!shape_fits(call, i, array))
        return refuse_shape(call, known, i, array);
    if (is_vector(p)) {
        *(void **)field = PyArray_DATA(array);
        return 0;
    }
    return take_axes(call, i, array, field);
}

/* ---- new arrays ---- */

static PyObject *
new_array(int ndim, const npy_intp *dims, int type)
{
    PyArray_Descr *descr = PyArray_DescrFromType(type);
    size_t size = (size_t)PyDataType_ELSIZE(descr);
    void *data;

    for (int d = 0; d < ndim; d++)
        if (__builtin_mul_overflow(size, (size_t)dims[d], &size) || size > (size_t)PTRDIFF_MAX) {
            Py_DECREF(descr);
            return PyErr_NoMemory();
        }
    PyObject *block = ck_block_new(size, &data);
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

/* The output that the caller did not give, shaped as declared. */
static int
make_array(ck_call *call, int i, void *field)
{
    const ck_shape *shape = &call->op->shapes[i];
    npy_intp dims[NPY_MAXDIMS];
    int n = 0;

    for (int j = 0; j < shape->n; j++) {
        const ck_axis *axis = &shape->axis[j];
        const int letter = axis->letter - 'A';
        if (!(call->known & (1u << letter)))
            return refuse(PyExc_TypeError, call->op, &call->op->params[i], "has a shape that no argument gives");
        if (axis->star) {
            const int count = n_leading(call, call->star_of[letter]);
            memcpy(dims + n, leading(call, call->star_of[letter]), (size_t)count * sizeof *dims);
            n += count;
        }
        else
            dims[n++] = (npy_intp)(axis->times * call->size[letter]);
    }
    PyObject *array = new_array(n, dims, call->op->params[i].type == CK_TYPE_double ? NPY_FLOAT64 : NPY_FLOAT32);
    if (array == NULL)
        return -1;
    const int taken = take_array(call, i, array, field);
    Py_DECREF(array);
    return taken;
}

/* ---- overlaps ---- */

typedef struct {
    const char *low, *high;
} extent;

static extent
extent_of(PyArrayObject *array)
{
    extent e = {PyArray_BYTES(array), PyArray_BYTES(array) + PyArray_ITEMSIZE(array)};
    if (PyArray_SIZE(array) == 0)
        return (extent){e.low, e.low};
    for (int d = 0; d < PyArray_NDIM(array); d++) {
        const npy_intp reach = PyArray_STRIDE(array, d) * (PyArray_DIM(array, d) - 1);
        *(reach < 0 ? &e.low : &e.high) += reach;
    }
    return e;
}

static bool
same_whole(PyArrayObject *x, PyArrayObject *y)
{
    const int n = PyArray_NDIM(x);
    if (PyArray_DATA(x) != PyArray_DATA(y) || n != PyArray_NDIM(y) || PyArray_TYPE(x) != PyArray_TYPE(y))
        return false;
    for (int d = 0; d < n; d++)
        if (PyArray_DIM(x, d) != PyArray_DIM(y, d) || (PyArray_DIM(x, d) > 1 && PyArray_STRIDE(x, d) != PyArray_STRIDE(y, d)))
            return false;
    return true;
}

/* 1: they share an element, 0: they do not, -1: error.  NumPy decides where only the extents overlap. */
static int
share(PyArrayObject *x, PyArrayObject *y)
{
    const extent a = extent_of(x), b = extent_of(y);
    if (a.low >= b.high || b.low >= a.high)
        return 0;
    PyObject *answer = PyObject_CallFunction(shares_memory, "OOi", (PyObject *)x, (PyObject *)y, 1000000);
    if (answer == NULL) { /* too hard to tell: treat as shared */
        PyErr_Clear();
        return 1;
    }
    const int yes = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return yes;
}

/* No array that is written may share memory with another, save an OVER with the whole of an input. */
static int
refuse_overlap(const ck_call *call)
{
    const ck_op *op = call->op;
    for (int i = 0; i < op->n_given; i++)
        for (int j = 0; is_written(&op->params[i]) && call->array[i] != NULL && j < op->n_given; j++) {
            PyArrayObject *x = (PyArrayObject *)call->array[i], *y = (PyArrayObject *)call->array[j];
            const ck_param *p = &op->params[i], *q = &op->params[j];
            if (i == j || y == NULL || (is_written(q) && j < i))
                continue;
            if (p->kind == CK_OVER && !is_written(q) && same_whole(x, y))
                continue;
            const int shared = share(x, y);
            if (shared < 0)
                return -1;
            if (shared) {
                char buffer[64], what[128];
                snprintf(what, sizeof what, "is written and overlaps '%s'", called(op, q, buffer, sizeof buffer));
                return refuse(PyExc_ValueError, op, p, what);
            }
        }
    return 0;
}

/* ---- numbers ---- */

static int
take_number(const ck_call *call, const ck_param *p, PyObject *object, void *field)
{
    if (p->kind == CK_REAL) {
        const double x = PyFloat_AsDouble(object);
        if (x == -1.0 && PyErr_Occurred())
            return refuse(PyExc_TypeError, call->op, p, "must be a number");
        if (p->type == CK_TYPE_float)
            *(float *)field = (float)x;
        else
            *(double *)field = x;
    }
    else if (p->kind == CK_INT) {
        PyObject *index = PyNumber_Index(object);
        if (index == NULL)
            return refuse(PyExc_TypeError, call->op, p, "must be an integer");
        const long long x = PyLong_AsLongLong(index);
        Py_DECREF(index);
        if (x == -1 && PyErr_Occurred())
            return refuse(PyExc_OverflowError, call->op, p, "does not fit 64 bits");
        *(int64_t *)field = x;
    }
    else {
        const int yes = PyObject_IsTrue(object);
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
    if (is_vector(p))
        *(void **)field = NULL;
    else
        ((ck_array *)field)->data = NULL;
}

/* Inputs first, so that the shapes of outputs are known when these are made. */
static int
take_all(ck_call *call, PyObject *const *objects, char *args)
{
    const ck_op *op = call->op;
    for (int i = 0; i < op->n_given; i++) {
        const ck_param *p = &op->params[i];
        void *field = args + p->offset;
        if (is_written(p))
            continue;
        if (!is_array(p)) {
            if (take_number(call, p, objects[i], field) < 0)
                return -1;
        }
        else if (objects[i] == Py_None && is_optional(p))
            set_absent(p, field);
        else if (take_array(call, i, objects[i], field) < 0)
            return -1;
    }
    for (int i = 0; i < op->n_given; i++) {
        const ck_param *p = &op->params[i];
        void *field = args + p->offset;
        if (!is_written(p))
            continue;
        if (objects[i] == Py_None && is_optional(p))
            set_absent(p, field);
        else if ((objects[i] == Py_None || objects[i] == Py_True ? make_array(call, i, field)
                                                                 : take_array(call, i, objects[i], field)) < 0)
            return -1;
    }
    for (int i = op->n_given; i < op->n_params; i++)
        *(size_t *)(args + op->params[i].offset) = call->size[op->params[i].name[0] - 'A'];
    return refuse_overlap(call);
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
        if (!is_written(&op->params[i]))
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
    for (int i = 0; i < call->op->n_given; i++) {
        Py_XDECREF(call->object[i]);
        Py_XDECREF(call->array[i]);
    }
}

/* A shape: a sequence of sizes, or one size.  Returns how many, -1 with an exception set. */
static int
take_shape(PyObject *object, npy_intp *dims)
{
    PyObject *sizes = PySequence_Check(object) ? PySequence_Tuple(object) : PyTuple_Pack(1, object);
    const Py_ssize_t n = sizes != NULL ? PyTuple_Size(sizes) : 0;

    if (n > NPY_MAXDIMS)
        PyErr_Format(PyExc_ValueError, "empty(): 'shape' has %zd axes, more than %d", n, NPY_MAXDIMS);
    for (Py_ssize_t i = 0; i < n && !PyErr_Occurred(); i++) {
        PyObject *index = PyNumber_Index(PyTuple_GetItem(sizes, i));
        dims[i] = index != NULL ? PyLong_AsSsize_t(index) : -1;
        Py_XDECREF(index);
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
    PyObject *array = NULL;

    if (n < 1 || n > 2) {
        PyErr_SetString(PyExc_TypeError, "empty() takes a shape and a dtype");
        return NULL;
    }
    const int ndim = take_shape(args[0], dims);
    if (ndim < 0)
        return NULL;
    if (n == 1)
        descr = PyArray_DescrFromType(NPY_FLOAT32);
    else if (!PyArray_DescrConverter(args[1], &descr))
        return NULL;
    if (PyDataType_HASFIELDS(descr) || PyDataType_REFCHK(descr) || PyDataType_ELSIZE(descr) == 0)
        PyErr_Format(PyExc_TypeError, "empty(): 'dtype' must be a number type, not %S", (PyObject *)descr);
    else
        array = new_array(ndim, dims, descr->type_num);
    Py_DECREF((PyObject *)descr);
    return array;
}

/* ---- DLPack ---- */

static void
release_tensor(PyObject *capsule)
{
    ck_dl_managed *managed = PyCapsule_GetPointer(capsule, "ckernels.dltensor");
    if (managed != NULL && managed->deleter != NULL)
        managed->deleter(managed);
}

static int
numpy_type(ck_dl_type t)
{
    if (t.lanes != 1)
        return NPY_NOTYPE;
    switch (t.code * 256 + t.bits) {
    case CK_DL_FLOAT * 256 + 16: return NPY_FLOAT16;
    case CK_DL_FLOAT * 256 + 32: return NPY_FLOAT32;
    case CK_DL_FLOAT * 256 + 64: return NPY_FLOAT64;
    case CK_DL_INT * 256 + 32: return NPY_INT32;
    case CK_DL_INT * 256 + 64: return NPY_INT64;
    case CK_DL_INT * 256 + 8: return NPY_INT8;
    case CK_DL_UINT * 256 + 8: return NPY_UINT8;
    case CK_DL_BOOL * 256 + 8: return NPY_BOOL;
    default: return NPY_NOTYPE;
    }
}

/* A NumPy array on the tensor's memory, which `owner` keeps alive.  Steals owner. */
static PyObject *
array_on(const ck_dl_tensor *t, PyObject *owner, const char *op, const char *name)
{
    npy_intp dims[NPY_MAXDIMS], strides[NPY_MAXDIMS];
    const int type = numpy_type(t->dtype), bytes = t->dtype.bits / 8;

    if (type == NPY_NOTYPE || t->ndim > NPY_MAXDIMS) {
        PyErr_Format(PyExc_TypeError, "%s(): '%s' has a dtype that is not supported (DLPack code %d, %d bits)", op, name,
                     t->dtype.code, t->dtype.bits);
        Py_DECREF(owner);
        return NULL;
    }
    npy_intp step = bytes;
    for (int d = t->ndim; d-- > 0; step *= dims[d]) {
        dims[d] = (npy_intp)t->shape[d];
        strides[d] = t->strides != NULL ? (npy_intp)t->strides[d] * bytes : step;
    }
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, PyArray_DescrFromType(type), t->ndim, dims, strides,
                                           (char *)t->data + t->byte_offset, NPY_ARRAY_WRITEABLE, NULL);
    if (array == NULL)
        Py_DECREF(owner);
    else if (PyArray_SetBaseObject((PyArrayObject *)array, owner) < 0)
        Py_CLEAR(array);
    if (array != NULL)
        PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_UPDATE_ALL);
    return array;
}

PyObject *
ck_from_dlpack(PyObject *object, const char *op, const char *name)
{
    int device = 0, number = 0;
    PyObject *where = PyObject_CallMethodObjArgs(object, str_dlpack_device, NULL);
    if (where == NULL || !PyArg_ParseTuple(where, "ii", &device, &number)) {
        Py_XDECREF(where);
        return NULL;
    }
    Py_DECREF(where);
    if (device != CK_DL_CPU) {
        PyErr_Format(PyExc_TypeError, "%s(): '%s' is not in CPU memory (DLPack device %d)", op, name, device);
        return NULL;
    }
    PyObject *capsule = PyObject_CallMethodObjArgs(object, str_dlpack, NULL);
    if (capsule == NULL)
        return NULL;
    ck_dl_managed *managed = PyCapsule_GetPointer(capsule, "dltensor");
    PyObject *owner = managed != NULL ? PyCapsule_New(managed, "ckernels.dltensor", release_tensor) : NULL;
    if (owner != NULL)
        PyCapsule_SetName(capsule, "used_dltensor");
    Py_DECREF(capsule);
    return owner != NULL ? array_on(&managed->tensor, owner, op, name) : NULL;
}

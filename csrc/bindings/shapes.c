/* Shapes as declared, as given, and as the op gets them. */
#include "bindings/call.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

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
    while (op->n_given > 0 && op->params[op->n_given - 1].kind >= CK_SIZE)
        op->n_given--;
    op->n_written = 0;
    for (int i = 0; i < op->n_given; i++) {
        parse_shape(&op->shapes[i], op->params[i].shape);
        op->n_written += ck_is_written(&op->params[i]);
    }
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

const char *
ck_append(char *text, size_t size, const char *format, ...)
{
    const size_t length = strlen(text);
    va_list values;
    va_start(values, format);
    vsnprintf(text + length, size - length, format, values);
    va_end(values);
    return text;
}

void
ck_append_dims(char *text, size_t size, int n, const npy_intp *dims)
{
    ck_append(text, size, "(");
    for (int i = 0; i < n; i++)
        ck_append(text, size, i == 0 ? "%zd" : ", %zd", (Py_ssize_t)dims[i]);
    ck_append(text, size, n == 1 ? ",)" : ")");
}

/* "'sin' of shape (1, 31) does not fit [T, K], where T=1, K=32" */
static int
refuse_shape(const ck_call *call, uint32_t known, int i, PyArrayObject *array)
{
    const ck_shape *shape = &call->op->shapes[i];
    char text[512] = "of shape ", where[256] = "";

    ck_append_dims(text, sizeof text, PyArray_NDIM(array), PyArray_DIMS(array));
    ck_append(text, sizeof text, " does not fit [");
    for (int j = 0; j < shape->n; j++) {
        const ck_axis *axis = &shape->axis[j];
        const int letter = axis->letter - 'A';
        ck_append(text, sizeof text, j == 0 ? "" : ", ");
        if (axis->star)
            ck_append(text, sizeof text, "...");
        else if (axis->times == 1)
            ck_append(text, sizeof text, "%c", axis->letter);
        else
            ck_append(text, sizeof text, "%d%c", axis->times, axis->letter);
        if (!(known & (1u << letter)))
            continue;
        ck_append(where, sizeof where, where[0] == '\0' ? ", where " : ", ");
        if (axis->star) {
            ck_append(where, sizeof where, "...=");
            ck_append_dims(where, sizeof where, n_leading(call, call->star_of[letter]), leading(call, call->star_of[letter]));
        }
        else
            ck_append(where, sizeof where, "%c=%zu", axis->letter, call->size[letter]);
    }
    ck_append(text, sizeof text, "]%s", where);
    return ck_refuse_param(PyExc_ValueError, call->op, &call->op->params[i], text);
}

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

/* The sizes that a declared shape stands for, in a call whose letters are known; how many, or -1: too many. */
static int
sizes_of(const ck_call *call, const ck_shape *shape, size_t *sizes)
{
    int n = 0;
    for (int j = 0; j < shape->n; j++) {
        const int letter = shape->axis[j].letter - 'A';
        const int count = shape->axis[j].star ? n_leading(call, call->star_of[letter]) : 1;
        if (n + count > CK_MAX_AXES)
            return -1;
        for (int d = 0; d < count; d++)
            sizes[n++] = shape->axis[j].star ? (size_t)leading(call, call->star_of[letter])[d]
                                             : shape->axis[j].times * call->size[letter];
    }
    return n;
}

/* A mask broadcasts: missing axes in front, and axes of size 1, have stride 0. */
int
ck_take_mask(ck_call *call, int i, PyArrayObject *array, ck_array *field)
{
    const int n = sizes_of(call, &call->op->shapes[i], field->size), missing = n - PyArray_NDIM(array);

    if (n < 0)
        return ck_refuse_param(PyExc_ValueError, call->op, &call->op->params[i],
                               "broadcasts to more axes than are supported, 8");
    field->data = PyArray_DATA(array);
    field->width = (size_t)PyArray_ITEMSIZE(array);
    field->n = (size_t)n;
    if (missing < 0)
        return refuse_shape(call, call->known, i, array);
    for (int d = 0; d < n; d++) {
        const size_t size = d < missing ? 1 : (size_t)PyArray_DIM(array, d - missing);
        if (size != 1 && size != field->size[d])
            return refuse_shape(call, call->known, i, array);
        field->stride[d] = size == 1 ? 0 : PyArray_STRIDE(array, d - missing);
    }
    return 0;
}

/* The leading axes and their strides, or the only axis; for a shape with a star, as few as describe the same rows. */
int
ck_take_axes(const ck_call *call, int i, PyArrayObject *array, ck_array *field)
{
    const ck_shape *shape = &call->op->shapes[i];
    const bool merge = shape->star >= 0, all = shape->n == 1;
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
            return ck_refuse_param(PyExc_ValueError, call->op, &call->op->params[i],
                          "has too many axes that cannot be merged: pass numpy.ascontiguousarray of it");
        field->size[kept] = size;
        field->stride[kept++] = stride;
    }
    field->n = kept;
    return 0;
}

int
ck_take_size(ck_call *call, int i, const void *field)
{
    const ck_param *p = &call->op->params[i];
    if (p->kind != CK_INT || p->name[1] != '\0')
        return 0;
    const int letter = p->name[0] >= 'a' ? p->name[0] - 'a' : p->name[0] - 'A';
    const int64_t n = *(const int64_t *)field;
    char what[128];
    if (n < 0)
        snprintf(what, sizeof what, "must be 0 or more, not %lld", (long long)n);
    else if (call->op->shapes[i].n != 0 && (size_t)n > call->size[call->op->shapes[i].axis[0].letter - 'A'])
        snprintf(what, sizeof what, "must be 0 to %zu, not %lld", call->size[call->op->shapes[i].axis[0].letter - 'A'],
                 (long long)n);
    else {
        call->known |= 1u << letter;
        call->size[letter] = (size_t)n;
        return 0;
    }
    return ck_refuse_param(PyExc_ValueError, call->op, p, what);
}

int
ck_take_shape(ck_call *call, int i, PyArrayObject *array)
{
    const uint32_t known = call->known;
    return shape_fits(call, i, array) ? 0 : refuse_shape(call, known, i, array);
}

int
ck_expected_shape(const ck_call *call, int i, npy_intp *dims)
{
    const ck_shape *shape = &call->op->shapes[i];
    int n = 0;

    for (int j = 0; j < shape->n; j++) {
        const ck_axis *axis = &shape->axis[j];
        const int letter = axis->letter - 'A';
        if (!(call->known & (1u << letter)))
            return ck_refuse_param(PyExc_TypeError, call->op, &call->op->params[i], "has a shape that no argument gives");
        if (axis->star) {
            const int count = n_leading(call, call->star_of[letter]);
            if (n + count + shape->n - j - 1 > NPY_MAXDIMS)
                return ck_refuse_param(PyExc_ValueError, call->op, &call->op->params[i],
                                       "would have more axes than NumPy has");
            memcpy(dims + n, leading(call, call->star_of[letter]), (size_t)count * sizeof *dims);
            n += count;
        }
        else
            dims[n++] = (npy_intp)(axis->times * call->size[letter]);
    }
    return n;
}

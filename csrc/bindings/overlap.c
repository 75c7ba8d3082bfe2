/* Which memory arguments share: an output overlaps nothing, save an OVER the whole of an IN. */
#include "bindings/call.h"

#include <stdio.h>
#include <stdlib.h>

static PyObject *shares_memory; /* numpy.shares_memory */

int
ck_overlap_init(void)
{
    PyObject *numpy = shares_memory == NULL ? PyImport_ImportModule("numpy") : NULL;
    if (numpy != NULL)
        shares_memory = PyObject_GetAttrString(numpy, "shares_memory");
    Py_XDECREF(numpy);
    return shares_memory != NULL ? 0 : -1;
}

/* Strides may be anything (numpy.lib.stride_tricks): bytes are counted without overflow. */
typedef __int128 wide;

static wide
size_of(wide x)
{
    return x < 0 ? -x : x;
}

/* Conservative: axes by ascending stride must each step over all that the ones before span. */
bool
ck_overlaps_itself(PyArrayObject *array)
{
    wide reach = PyArray_ITEMSIZE(array); /* bytes that the axes seen so far span */
    uint64_t seen = 0;
    if (PyArray_SIZE(array) == 0)
        return false;
    for (int round = 0; round < PyArray_NDIM(array); round++) {
        int next = -1;
        for (int d = 0; d < PyArray_NDIM(array); d++)
            if (!(seen >> d & 1) && (next < 0 || size_of(PyArray_STRIDE(array, d)) < size_of(PyArray_STRIDE(array, next))))
                next = d;
        seen |= (uint64_t)1 << next;
        if (PyArray_DIM(array, next) == 1)
            continue;
        if (size_of(PyArray_STRIDE(array, next)) < reach)
            return true;
        reach += size_of(PyArray_STRIDE(array, next)) * (PyArray_DIM(array, next) - 1);
    }
    return false;
}

typedef struct {
    wide low, high;
} extent;

static extent
extent_of(PyArrayObject *array)
{
    const wide at = (wide)(uintptr_t)PyArray_DATA(array);
    extent e = {at, at + PyArray_ITEMSIZE(array)};
    if (PyArray_SIZE(array) == 0)
        return (extent){e.low, e.low};
    for (int d = 0; d < PyArray_NDIM(array); d++) {
        const wide reach = (wide)PyArray_STRIDE(array, d) * (PyArray_DIM(array, d) - 1);
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
        if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) /* numpy.exceptions.TooHardError is one */
            return -1;
        PyErr_Clear();
        return 1;
    }
    const int yes = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return yes;
}

/* No array that is written may share memory with another, save an OVER with the whole of an IN that is no weight. */
int
ck_refuse_overlap(const ck_call *call)
{
    const ck_op *op = call->op;
    for (int i = 0; i < op->n_given; i++)
        for (int j = 0; ck_is_written(&op->params[i]) && call->array[i] != NULL && j < op->n_given; j++) {
            PyArrayObject *x = (PyArrayObject *)call->array[i], *y = (PyArrayObject *)call->array[j];
            const ck_param *p = &op->params[i], *q = &op->params[j];
            if (i == j || y == NULL || (ck_is_written(q) && j < i))
                continue;
            if (p->kind == CK_OVER && (q->kind == CK_IN || q->kind == CK_OPT_IN) && q->type != CK_TYPE_weight && same_whole(x, y))
                continue;
            const int shared = share(x, y);
            if (shared < 0)
                return -1;
            if (shared) {
                char buffer[64], what[128];
                snprintf(what, sizeof what, "is written and overlaps '%s'", ck_called(op, q, buffer, sizeof buffer));
                return ck_refuse_param(PyExc_ValueError, op, p, what);
            }
        }
    return 0;
}


/* ---- lists ---- */

typedef struct {
    extent bytes;
    int i;    /* parameter */
    size_t j; /* member */
} placed;

static int
by_address(const void *x, const void *y)
{
    const placed *a = x, *b = y;
    return a->bytes.low < b->bytes.low ? -1 : a->bytes.low > b->bytes.low;
}

/* Whether two members may share memory: both are read, or one is written over the whole of the other as declared. */
static bool
may_share(const ck_call *call, const placed *a, const placed *b, PyArrayObject *x, PyArrayObject *y)
{
    const ck_kind p = call->op->params[a->i].kind, q = call->op->params[b->i].kind;
    if (p == CK_LIST_IN && q == CK_LIST_IN)
        return true;
    return a->j == b->j && ((p == CK_OPT_LIST_OVER && q == CK_LIST_IN) || (p == CK_LIST_IN && q == CK_OPT_LIST_OVER))
           && same_whole(x, y);
}

static int
refuse_shared(const ck_call *call, const placed *a, const placed *b)
{
    const ck_op *op = call->op;
    /* In the order of a reader: by parameter, then by member; the one that is written first. */
    if (op->params[a->i].kind == CK_LIST_IN || (op->params[b->i].kind != CK_LIST_IN && (b->i < a->i || (b->i == a->i && b->j < a->j)))) {
        const placed *swap = a;
        a = b;
        b = swap;
    }
    PyErr_Format(PyExc_ValueError, "%s(): '%s[%zu]' is written and overlaps '%s[%zu]'", op->called, op->params[a->i].name,
                 a->j, op->params[b->i].name, b->j);
    return -1;
}

/* Sorted by address, an array can only meet those that follow before its own end. */
int
ck_refuse_overlap_of_lists(const ck_call *call)
{
    const size_t most = (size_t)call->op->n_given * call->n_members;
    placed *all = call->member != NULL && most != 0 ? PyMem_Malloc(most * sizeof *all) : NULL;
    size_t n = 0;
    int status = 0;

    if (most == 0)
        return 0;
    if (all == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t at = 0; at < most; at++)
        if (call->member[at] != NULL && PyArray_SIZE((PyArrayObject *)call->member[at]) != 0)
            all[n++] = (placed){extent_of((PyArrayObject *)call->member[at]), (int)(at / call->n_members), at % call->n_members};
    qsort(all, n, sizeof *all, by_address);
    for (size_t a = 0; a < n; a++)
        for (size_t b = a + 1; status == 0 && b < n && all[b].bytes.low < all[a].bytes.high; b++) {
            PyArrayObject *x = (PyArrayObject *)call->member[(size_t)all[a].i * call->n_members + all[a].j];
            PyArrayObject *y = (PyArrayObject *)call->member[(size_t)all[b].i * call->n_members + all[b].j];
            const int shared = may_share(call, &all[a], &all[b], x, y) ? 0 : share(x, y);
            status = shared > 0 ? refuse_shared(call, &all[a], &all[b]) : shared;
        }
    PyMem_Free(all);
    return status;
}

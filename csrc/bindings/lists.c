/* Lists of arrays: member j of every list is one small call, with sizes of its own. */
#include "bindings/call.h"

#include <stdio.h>
#include <string.h>

/* "step(): 'grads' must be ..." becomes "step(): 'grads[3]' must be ..."; -1. */
static int
name_member(const ck_call *call, int i, size_t j)
{
    PyObject *kind, *value, *trace;
    char known[80], named[120];

    if (!PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_ValueError))
        return -1; /* a KeyboardInterrupt, say, or what else an object's own methods raise */
    PyErr_Fetch(&kind, &value, &trace);
    PyErr_NormalizeException(&kind, &value, &trace);
    snprintf(known, sizeof known, "'%s'", call->op->params[i].name);
    snprintf(named, sizeof named, "'%s[%zu]'", call->op->params[i].name, j);
    PyObject *text = value != NULL ? PyObject_Str(value) : NULL;
    PyObject *better = text != NULL ? PyObject_CallMethod(text, "replace", "ssi", known, named, 1) : NULL;
    if (better != NULL)
        PyErr_SetObject(kind, better);
    Py_XDECREF(better);
    Py_XDECREF(text);
    Py_XDECREF(kind);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return -1;
}

/* The lists as tuples that nobody changes meanwhile, in call->array for a while; their length is N. */
static int
take_tuples(ck_call *call, PyObject *const *objects)
{
    const ck_op *op = call->op;
    int first = -1;

    for (int i = 0; i < op->n_given; i++) {
        const ck_param *p = &op->params[i];
        if (!ck_is_list(p) || (objects[i] == Py_None && ck_is_optional(p)))
            continue;
        if (!PyList_Check(objects[i]) && !PyTuple_Check(objects[i])) {
            PyErr_Format(PyExc_TypeError, "%s(): '%s' must be a list of arrays, not %R", op->called, p->name,
                         (PyObject *)Py_TYPE(objects[i]));
            return -1;
        }
        if ((call->array[i] = PySequence_Tuple(objects[i])) == NULL)
            return -1;
        Py_INCREF(objects[i]);
        call->object[i] = objects[i];
        const size_t n = (size_t)PyTuple_Size(call->array[i]);
        if (first >= 0 && n != call->n_members) {
            PyErr_Format(PyExc_ValueError, "%s(): '%s' holds %zu arrays, '%s' %zu", op->called, p->name, n,
                         op->params[first].name, call->n_members);
            return -1;
        }
        if (first < 0)
            first = i;
        call->n_members = n;
    }
    return first;
}

/* Member j of every list, in the order of the declaration: the first says what the others must fit. */
static int
take_members(ck_call *call, PyObject *const *tuples, char *args, size_t j)
{
    const ck_op *op = call->op;
    for (int i = 0; i < op->n_given; i++) {
        if (tuples[i] == NULL)
            continue;
        ck_array *const arrays = *(ck_array **)(args + op->params[i].offset);
        PyObject *const list = call->object[i];
        const int taken = ck_take_array(call, i, PyTuple_GetItem(tuples[i], (Py_ssize_t)j), &arrays[j]);
        if (call->object[i] != list) /* ck_take_array noted the member */
            Py_XDECREF(call->object[i]);
        call->object[i] = list;
        if (taken < 0)
            return name_member(call, i, j);
    }
    return 0;
}

/* The fields: N arrays for each list, N sizes for each SIZES. */
static int
make_room(ck_call *call, PyObject *const *tuples, char *args)
{
    const ck_op *op = call->op;
    const size_t n = call->n_members;
    size_t bytes = 1;

    for (int i = 0; i < op->n_params; i++)
        bytes += n * (op->params[i].kind == CK_SIZES ? sizeof(size_t) : ck_is_list(&op->params[i]) ? sizeof(ck_array) : 0);
    call->member = PyMem_Calloc((size_t)op->n_given * n + 1, sizeof *call->member);
    char *at = call->list_room = PyMem_Malloc(bytes);
    if (call->member == NULL || at == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (int i = 0; i < op->n_params; i++) {
        void **field = (void **)(args + op->params[i].offset);
        if (ck_is_list(&op->params[i])) {
            *field = tuples[i] != NULL ? at : NULL;
            at += n * sizeof(ck_array);
        }
        else if (op->params[i].kind == CK_SIZES) {
            *field = at;
            at += n * sizeof(size_t);
        }
        else if (op->params[i].kind == CK_OWN)
            *field = NULL;
    }
    return 0;
}

static int
take_each(ck_call *call, PyObject *const *tuples, char *args)
{
    const ck_op *op = call->op;
    for (size_t j = 0; j < call->n_members; j++) {
        call->known = 0;
        const int status = take_members(call, tuples, args, j);
        for (int i = 0; i < op->n_given; i++) {
            if (tuples[i] != NULL) {
                call->member[(size_t)i * call->n_members + j] = call->array[i];
                call->array[i] = NULL;
            }
        }
        if (status < 0)
            return -1;
        for (int i = op->n_given; i < op->n_params; i++)
            if (op->params[i].kind == CK_SIZES)
                ((size_t *)*(void **)(args + op->params[i].offset))[j] = call->size[op->params[i].name[0] - 'A'];
    }
    call->known = 1u << ('N' - 'A');
    call->size['N' - 'A'] = call->n_members;
    return 0;
}

int
ck_take_lists(ck_call *call, PyObject *const *objects, char *args)
{
    PyObject *tuples[CK_MAX_PARAMS];
    bool any = false;

    for (int i = 0; i < call->op->n_given && !any; i++)
        any = ck_is_list(&call->op->params[i]);
    if (!any)
        return 0;
    const int first = take_tuples(call, objects);
    for (int i = 0; i < call->op->n_given; i++) {
        tuples[i] = call->array[i];
        call->array[i] = NULL;
    }
    const int status = PyErr_Occurred() || first < 0 || make_room(call, tuples, args) < 0 ? -1 : take_each(call, tuples, args);
    for (int i = 0; i < call->op->n_given; i++)
        Py_XDECREF(tuples[i]);
    return status;
}

void
ck_drop_lists(ck_call *call)
{
    for (size_t i = 0; call->member != NULL && i < (size_t)call->op->n_given * call->n_members; i++)
        Py_XDECREF(call->member[i]);
    PyMem_Free(call->member);
    PyMem_Free(call->list_room);
}

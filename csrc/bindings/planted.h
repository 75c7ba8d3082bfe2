#ifndef CK_PLANTED_H
#define CK_PLANTED_H
/* The build with planted faults (faults.h) has functions to choose one; the library has none of this. */
#ifdef CK_FAULTS
#include "bindings/arrays.h"
#include "faults.h"

#include <string.h>

/* The planted faults by name, with what is wrong. */
static PyObject *
faults(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    PyObject *all = PyDict_New();
    for (int i = 1; all != NULL && i < CK_FAULT_COUNT; i++) {
        PyObject *what = PyUnicode_FromString(ck_fault_rows[i].what);
        if (what == NULL || PyDict_SetItemString(all, ck_fault_rows[i].name, what) < 0)
            Py_CLEAR(all);
        Py_XDECREF(what);
    }
    return all;
}

/* Plants the fault of that name, or none: "".  Nothing was asked for yet. */
static PyObject *
plant(PyObject *module, PyObject *arg)
{
    (void)module;
    const char *name = PyUnicode_AsUTF8AndSize(arg, NULL);
    if (name == NULL)
        return NULL;
    for (int i = 0; i < CK_FAULT_COUNT; i++)
        if (strcmp(ck_fault_rows[i].name, name) == 0) {
            memset(ck_fault_asked, 0, sizeof ck_fault_asked);
            ck_fault_planted = i;
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "no fault is called '%s'", name);
}

/* The names of the faults whose places were come by since. */
static PyObject *
asked(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    PyObject *names = PyList_New(0);
    for (int i = 1; names != NULL && i < CK_FAULT_COUNT; i++) {
        PyObject *name = ck_fault_asked[i] ? PyUnicode_FromString(ck_fault_rows[i].name) : NULL;
        if (ck_fault_asked[i] && (name == NULL || PyList_Append(names, name) < 0))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}
#define CK_FAULTS_METHODS                                                                                             \
    {"faults", faults, METH_NOARGS, "faults($module, /)\n--\n\nThe planted faults, with what is wrong."},             \
    {"plant", plant, METH_O, "plant($module, name, /)\n--\n\nPlant a fault, or none: ''."},                          \
    {"asked", asked, METH_NOARGS, "asked($module, /)\n--\n\nFaults whose places were come by since the last plant()."},
#else
#define CK_FAULTS_METHODS
#endif
#endif

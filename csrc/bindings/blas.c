/* OpenBLAS as Python sees it: where it is, whether it is there, and the choice of it; and of how exact products are. */
#include "bindings/blas.h"

#include "ops/gemm_tiles.h"
#include "runtime/blas.h"

#include <string.h>

PyObject *
ck_py_set_blas_path(PyObject *module, PyObject *path)
{
    (void)module;
    PyObject *bytes = NULL;
    if (!PyUnicode_FSConverter(path, &bytes))
        return NULL;
    ck_set_blas_path(PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    Py_RETURN_NONE;
}

PyObject *
ck_py_blas_info(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    const ck_blas_info info = ck_blas_open();
    return Py_BuildValue("{s:s,s:z,s:z,s:z}", "path", info.path, "config", info.config, "core", info.core, "lacking",
                         info.lacking[0] != '\0' ? info.lacking : NULL);
}

PyObject *
ck_py_set_matmul_backend(PyObject *module, PyObject *name)
{
    (void)module;
    if (!PyUnicode_Check(name))
        return PyErr_Format(PyExc_TypeError, "set_matmul_backend(): 'name' must be 'ckernels' or 'openblas', not %R", name);
    const bool openblas = PyUnicode_CompareWithASCIIString(name, "openblas") == 0;
    if (!openblas && PyUnicode_CompareWithASCIIString(name, "ckernels") != 0)
        return PyErr_Format(PyExc_ValueError, "set_matmul_backend(): 'name' must be 'ckernels' or 'openblas', not %R", name);
    if (!ck_blas_choose(openblas))
        return PyErr_Format(PyExc_RuntimeError, "set_matmul_backend(): OpenBLAS is not there: %s", ck_blas_open().lacking);
    Py_RETURN_NONE;
}

PyObject *
ck_py_get_matmul_backend(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyUnicode_FromString(ck_blas_chosen() != NULL ? "openblas" : "ckernels");
}

static const char *const precisions[CK_PRECISIONS] = {"highest", "high", "medium"};

PyObject *
ck_py_set_matmul_precision(PyObject *module, PyObject *name)
{
    (void)module;
    for (int i = 0; i < CK_PRECISIONS && PyUnicode_Check(name); i++)
        if (PyUnicode_CompareWithASCIIString(name, precisions[i]) == 0) {
            ck_set_matmul_precision((ck_precision)i);
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyUnicode_Check(name) ? PyExc_ValueError : PyExc_TypeError,
                        "set_matmul_precision(): 'precision' must be 'highest', 'high' or 'medium', not %R", name);
}

PyObject *
ck_py_get_matmul_precision(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyUnicode_FromString(precisions[ck_matmul_precision()]);
}

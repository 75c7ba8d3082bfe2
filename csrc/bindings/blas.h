#ifndef CK_BINDINGS_BLAS_H
#define CK_BINDINGS_BLAS_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *ck_py_set_blas_path(PyObject *module, PyObject *path);
PyObject *ck_py_blas_info(PyObject *module, PyObject *unused);
PyObject *ck_py_set_matmul_backend(PyObject *module, PyObject *name);
PyObject *ck_py_get_matmul_backend(PyObject *module, PyObject *unused);
PyObject *ck_py_set_matmul_precision(PyObject *module, PyObject *name);
PyObject *ck_py_get_matmul_precision(PyObject *module, PyObject *unused);

#define CK_BLAS_METHODS                                                                                               \
    {"set_blas_path", ck_py_set_blas_path, METH_O,                                                                    \
     "set_blas_path($module, path, /)\n--\n\nWhere the package keeps OpenBLAS; CK_BLAS_LIB goes before it."},         \
    {"blas_info", ck_py_blas_info, METH_NOARGS,                                                                       \
     "blas_info($module, /)\n--\n\nOpenBLAS: path, config, core, and lacking, which says why it is not there."},      \
    {"set_matmul_backend", ck_py_set_matmul_backend, METH_O,                                                          \
     "set_matmul_backend($module, name, /)\n--\n\nChoose 'ckernels' or 'openblas' for linear and matmul."},           \
    {"get_matmul_backend", ck_py_get_matmul_backend, METH_NOARGS,                                                     \
     "get_matmul_backend($module, /)\n--\n\nWhat linear and matmul multiply with."},                                   \
    {"set_matmul_precision", ck_py_set_matmul_precision, METH_O,                                                      \
     "set_matmul_precision($module, precision, /)\n--\n\nChoose 'highest', 'high' or 'medium' for float32 products."}, \
    {"get_matmul_precision", ck_py_get_matmul_precision, METH_NOARGS,                                                 \
     "get_matmul_precision($module, /)\n--\n\nHow exactly float32 products must be computed."},
#endif

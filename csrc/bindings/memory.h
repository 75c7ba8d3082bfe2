#ifndef CK_MEMORY_H
#define CK_MEMORY_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Makes the type of the objects that own a block of the arena, and give it back when the last array on it dies. */
int ck_memory_init(PyObject *module);

/* A new array on such a block, not cleared; NULL with MemoryError set.  Steals dtype, a numpy.dtype. */
PyObject *ck_new_array(int ndim, const Py_ssize_t *dims, PyObject *dtype);

/* empty(shape, dtype="float32") */
PyObject *ck_py_empty(PyObject *module, PyObject *const *args, Py_ssize_t n);
#endif

#ifndef CK_MEMORY_H
#define CK_MEMORY_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* A Python object that owns a block of the arena and gives it back when the last array on it dies. */
int ck_memory_init(PyObject *module);
PyObject *ck_block_new(size_t size, void **data); /* NULL with MemoryError set */

/* A tensor that lends its memory through __dlpack__, as a NumPy array on the same memory: see dlpack.c. */
PyObject *ck_from_dlpack(PyObject *object, const char *op, const char *name);
#endif

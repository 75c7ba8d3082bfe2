#ifndef CK_NUMPY_H
#define CK_NUMPY_H
/* NumPy's C API: one table of it for all files, filled by ck_arrays_init(). */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL ck_numpy
#ifndef CK_FILLS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>
#endif

#ifndef CK_DLPACK_H
#define CK_DLPACK_H
/* Tensors by DLPack, and as much of its ABI as that needs: https://dmlc.github.io/dlpack/latest/c_api.html */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

int ck_dlpack_init(void);

/* A tensor that lends its memory through __dlpack__, as a NumPy array on it; NULL with an exception set. */
PyObject *ck_from_dlpack(PyObject *object, const char *op, const char *name);

enum { CK_DL_CPU = 1 };
enum { CK_DL_INT = 0, CK_DL_UINT = 1, CK_DL_FLOAT = 2, CK_DL_BFLOAT = 4, CK_DL_BOOL = 6 };

typedef struct { int32_t device_type, device_id; } ck_dl_device;
typedef struct { uint8_t code, bits; uint16_t lanes; } ck_dl_type;
typedef struct {
    void *data;
    ck_dl_device device;
    int32_t ndim;
    ck_dl_type dtype;
    int64_t *shape, *strides; /* in elements; NULL strides: C-contiguous */
    uint64_t byte_offset;
} ck_dl_tensor;
typedef struct ck_dl_managed {
    ck_dl_tensor tensor;
    void *context;
    void (*deleter)(struct ck_dl_managed *);
} ck_dl_managed;

/* From DLPack 1.0 on. */
enum { CK_DL_READ_ONLY = 1 };
typedef struct ck_dl_versioned {
    uint32_t major, minor;
    void *context;
    void (*deleter)(struct ck_dl_versioned *);
    uint64_t flags;
    ck_dl_tensor tensor;
} ck_dl_versioned;
#endif

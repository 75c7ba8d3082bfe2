#ifndef CK_DLPACK_H
#define CK_DLPACK_H
/* The part of the DLPack 0.8 ABI that is needed to take a tensor: https://dmlc.github.io/dlpack/latest/c_api.html */
#include <stdint.h>

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
#endif

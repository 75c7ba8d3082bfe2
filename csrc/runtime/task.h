#ifndef CK_TASK_H
#define CK_TASK_H
/* What the runtime knows of an op: its status, its dtype, and a kernel that does a share of it. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Items begin..end-1 of what an op is cut along. */
typedef struct {
    size_t begin, end;
    void *work;    /* of this task: what it leaves for the fold that follows */
    void *scratch; /* of this thread: nothing in it outlives the task */
} ck_task;

typedef void ck_kernel(const void *args, ck_task task);

/* Everything but CK_OK has a text in ck_error_text(). */
typedef enum {
    CK_OK,
    CK_NO_MEMORY,
    CK_INTERRUPTED,  /* the poll function asked to stop (a signal) */
    CK_BAD_TYPE,     /* TypeError */
    CK_BAD_VALUE,    /* ValueError */
    CK_BAD_INDEX,    /* IndexError */
    CK_TOO_LARGE,    /* OverflowError */
} ck_status;

typedef enum { CK_F32, CK_BF16, CK_F16, CK_DTYPES } ck_dtype;

/* The kernels of one instruction set and one dtype (ops/ops.h). */
typedef struct ck_kernels ck_kernels;
#endif

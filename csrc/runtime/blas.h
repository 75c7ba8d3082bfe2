#ifndef CK_BLAS_H
#define CK_BLAS_H
/*
 * OpenBLAS, an optional other way to multiply: a shared library opened by its absolute path on first use, into a table
 * of this file's own.  Never linked and never visible to others, so it meets no other copy in the process.  It runs on
 * one thread, as our tasks call it.
 */
#include "runtime/task.h"

/* C = A B, row-major, after scipy_cblas_sgemm: order 101; 111 as stored, 112 transposed. */
typedef void ck_sgemm(int order, int transpose_a, int transpose_b, int M, int N, int K, float alpha, const float *a,
                      int lda, const float *b, int ldb, float beta, float *c, int ldc);

enum { CK_BLAS_ROWS = 101, CK_BLAS_AS_IS = 111, CK_BLAS_TRANSPOSED = 112, CK_BLAS_TEXT = 512 };

typedef struct {
    char path[CK_BLAS_TEXT];
    char lacking[CK_BLAS_TEXT]; /* why it is not there; empty when it is */
    const char *config, *core;  /* what it says of itself */
} ck_blas_info;

/* Where the package keeps it.  The environment's CK_BLAS_LIB goes first. */
void ck_set_blas_path(const char *path);

/* Opens the library if that has not been tried; what came of it. */
ck_blas_info ck_blas_open(void);

/* Choose OpenBLAS, or our kernels, for linear and matmul; false where it is not there. */
bool ck_blas_choose(bool openblas);

/* Its product while it is chosen, else NULL. */
ck_sgemm *ck_blas_chosen(void);
#endif

#ifndef CKERNELS_H
#define CKERNELS_H
/*
 * ckernels -- the C library.  `python setup.py build_library` makes build/libckernels.a of it; link with -pthread
 * -ldl -lm and compile with -I csrc.  Python is one of its callers; tests/c/layer.c is another.
 *
 *     const ck_kernels *k = ck_kernels_for(NULL, CK_F32);        // the best instruction set of this CPU
 *     ck_set_threads(2);
 *     ck_status status = ck_rms_norm_fwd(k, &(struct ck_rms_norm_fwd){
 *         .y = ck_rows(y, R, C, sizeof(float)), .x = ck_rows(x, R, C, sizeof(float)),
 *         .weight = ck_rows(w, 1, C, sizeof(float)), .eps = 1e-6, .R = R, .C = C});
 *     if (status != CK_OK)
 *         fprintf(stderr, "rms_norm: %s\n", ck_error_text());
 *
 * Every op is a function of a struct of the same name, declared in ops/<op>.h with its equations, shapes and saved
 * values; the decoder layer is declared in layers/decoder.h.  An op checks what its shapes imply and what its ids hold;
 * that pointers, sizes and strides fit each other is up to the caller.  Any thread may call; threads share one pool.
 */
#include "layers/decoder.h"
#include "ops/ops.h"
#include "runtime/arena.h"
#include "runtime/dispatch.h"
#include "runtime/error.h"
#include "runtime/run.h"

#endif

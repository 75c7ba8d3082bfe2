#ifndef CK_PROBE_H
#define CK_PROBE_H
#include "ops/op.h"
/*
 * probe -- what this machine can do at most, for benches to measure themselves against
 *
 *     probe_copy      out[b,c] = x[b,c]                    past the caches when `stream`
 *     probe_update    out[b,c] = -x[b,c]                   in place where out is x
 *     probe_read      sum[b]   = sum_c x[b,c]              in eight streams a row, prefetched; or in one
 *     probe_fma       sum[b]   = sum_{i<128} y_i, each `n` times y = y * y - (1/2 - i/512) from y = 0
 *
 *     probe_amx       sum[b]   = 128 n: `n` times four products of bfloat16 tiles of ones; NaN without a matrix unit
 *
 * A task is one row b, so C says how much of the work one thread takes at a time.  Bytes moved: two of each element,
 * but for the read, which moves one; the arithmetic of probe_fma is B * n * 128 fused multiply-adds, of probe_amx 4 * 8192 * B * n.  Each y tends to
 * (1 - sqrt(3 - i/128)) / 2, so it neither overflows nor becomes subnormal.
 */
#define CK_ARGS_probe_copy(_)                \
    _(OUT,  elem,   out,    "B C")           \
    _(IN,   elem,   x,      "B C")           \
    _(FLAG, int,    stream, "")              \
    _(SIZE, size_t, B,      "")              \
    _(SIZE, size_t, C,      "")
CK_DECLARE(probe_copy)

#define CK_ARGS_probe_update(_)              \
    _(OVER, elem,   out,    "B C")           \
    _(IN,   elem,   x,      "B C")           \
    _(SIZE, size_t, B,      "")              \
    _(SIZE, size_t, C,      "")
CK_DECLARE(probe_update)

#define CK_ARGS_probe_read(_)                \
    _(OUTV, float,  sum,    "B")             \
    _(IN,   elem,   x,      "B C")           \
    _(FLAG, int,    eight,  "")              \
    _(SIZE, size_t, B,      "")              \
    _(SIZE, size_t, C,      "")
CK_DECLARE(probe_read)

#define CK_ARGS_probe_fma(_)                 \
    _(OUTV, float,  sum,    "B")             \
    _(INT,  int64_t, n,     "")              \
    _(SIZE, size_t, B,      "")
CK_DECLARE(probe_fma)

#define CK_ARGS_probe_amx(_)                 \
    _(OUTV, float,  sum,    "B")             \
    _(INT,  int64_t, n,     "")              \
    _(SIZE, size_t, B,      "")
CK_DECLARE(probe_amx)
#endif

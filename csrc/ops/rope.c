#include "ops/rope.h"

#include "ops/ops.h"
#include "runtime/run.h"

#include <math.h>

ck_status
ck_refuse_rope(const struct ck_rope_fwd *a)
{
    if (2 * a->K > a->D)
        return ck_refuse(CK_BAD_VALUE, "'cos' has K=%zu pairs, and there are only D=%zu channels to rotate", a->K, a->D);
    if (a->positions.data == NULL) {
        if (a->S != a->T)
            return ck_refuse(CK_BAD_VALUE, "'cos' has S=%zu rows for T=%zu tokens: give 'positions', or a row a token",
                             a->S, a->T);
        return CK_OK;
    }
    if (a->P != 1 && (a->P == 0 ? a->N != 0 : a->N % a->P != 0))
        return ck_refuse(CK_BAD_VALUE, "'positions' has %zu rows, which do not divide the N=%zu of x", a->P, a->N);
    for (size_t p = 0; p < a->P; p++)
        for (size_t t = 0; t < a->T; t++) {
            const int64_t position = ck_position(&a->positions, p, t);
            if (position < 0 || (uint64_t)position >= a->S)
                return ck_refuse(CK_BAD_INDEX, "'positions' holds %lld, and the table has %zu rows",
                                 (long long)position, a->S);
        }
    return CK_OK;
}

static ck_status
run(const struct ck_rope_fwd *a, ck_kernel *kernel, const void *args)
{
    const size_t tokens = a->T < CK_ROPE_T ? a->T : CK_ROPE_T;
    const ck_status status = ck_refuse_rope(a);
    return status != CK_OK ? status : ck_tasks(ck_blocks(a->T, CK_ROPE_T) * a->N, ck_grain(tokens * a->D), kernel, args);
}

CK_RUN(rope_fwd)
{
    return run(a, CK_FAST(rope_fwd), a);
}

CK_RUN(rope_bwd)
{
    const struct ck_rope_fwd same = {a->dx, a->dy, a->cos, a->sin, a->positions, a->interleaved,
                                     a->N, a->T, a->D, a->S, a->K, a->P};
    return run(&same, CK_FAST(rope_bwd), a);
}

CK_RUN(rope_table)
{
    if (!(a->base > 0) || isinf(a->base))
        return ck_refuse(CK_BAD_VALUE, "'base' must be positive and finite, not %g", a->base);
    return ck_tasks(a->T, ck_grain(64 * a->K), CK_FAST(rope_table), a); /* a cosine and a sine cost some 64 copies */
}

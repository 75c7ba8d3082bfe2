#include "kernels/kernel.h"
#include "ops/glu.h"
#include "ops/elementwise.h"
#include "simd/activation.h"

#define AT(array) ((elem *)ck_row(&(array), s.row) + s.column)

static inline __attribute__((always_inline)) void
forward(const struct ck_swiglu_fwd *a, ck_task task, ck_function *f)
{
    for (ck_stretch s = ck_first_stretch(task, a->F); s.n != 0; s = ck_next_stretch(s, task, a->F)) {
        const elem *gate = AT(a->gate), *up = AT(a->up);
        elem *y = AT(a->y);
        for (size_t c = 0; c < s.n; c += 16)
            v16_store(y + c, v16_mul(f(v16_load(gate + c, s.n - c)), v16_load(up + c, s.n - c)), s.n - c);
    }
}

static inline __attribute__((always_inline)) void
backward(const struct ck_swiglu_bwd *a, ck_task task, ck_function *f, ck_function *slope_of)
{
    for (ck_stretch s = ck_first_stretch(task, a->F); s.n != 0; s = ck_next_stretch(s, task, a->F)) {
        const elem *gate = AT(a->gate), *up = AT(a->up), *dy = AT(a->dy);
        elem *dgate = AT(a->dgate), *dup = AT(a->dup);
        for (size_t c = 0; c < s.n; c += 16) { /* everything is read before anything is written: outputs may be inputs */
            const v16 g = v16_load(gate + c, s.n - c), u = v16_load(up + c, s.n - c), d = v16_load(dy + c, s.n - c);
            v16_store(dgate + c, v16_mul(v16_mul(d, u), slope_of(g)), s.n - c);
            v16_store(dup + c, v16_mul(d, f(g)), s.n - c);
        }
    }
}

CK_KERNEL(swiglu_fwd)
{
    forward(a, task, v16_silu);
}

CK_KERNEL(swiglu_bwd)
{
    backward(a, task, v16_silu, v16_silu_slope);
}

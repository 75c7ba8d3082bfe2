#include "kernels/kernel.h"
#include "ops/activation.h"
#include "ops/elementwise.h"
#include "simd/activation.h"

static inline __attribute__((always_inline)) void
forward(const ck_array *y_, const ck_array *x_, size_t C, ck_task task, ck_function *f)
{
    for (ck_stretch s = ck_first_stretch(task, C); s.n != 0; s = ck_next_stretch(s, task, C)) {
        const elem *x = (const elem *)ck_row(x_, s.row) + s.column;
        elem *y = (elem *)ck_row(y_, s.row) + s.column;
        for (size_t c = 0; c < s.n; c += 16)
            v16_store(y + c, f(v16_load(x + c, s.n - c)), s.n - c);
    }
}

static inline __attribute__((always_inline)) void
backward(const ck_array *dx_, const ck_array *dy_, const ck_array *x_, size_t C, ck_task task, ck_function *slope_of)
{
    for (ck_stretch s = ck_first_stretch(task, C); s.n != 0; s = ck_next_stretch(s, task, C)) {
        const elem *x = (const elem *)ck_row(x_, s.row) + s.column, *dy = (const elem *)ck_row(dy_, s.row) + s.column;
        elem *dx = (elem *)ck_row(dx_, s.row) + s.column;
        for (size_t c = 0; c < s.n; c += 16) {
            const v16 slope = slope_of(v16_load(x + c, s.n - c));
            v16_store(dx + c, v16_mul(v16_load(dy + c, s.n - c), slope), s.n - c);
        }
    }
}

CK_KERNEL(silu_fwd)
{
    forward(&a->y, &a->x, a->C, task, v16_silu);
}

CK_KERNEL(silu_bwd)
{
    backward(&a->dx, &a->dy, &a->x, a->C, task, v16_silu_slope);
}

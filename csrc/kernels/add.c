#include "kernels/kernel.h"
#include "ops/add.h"
#include "ops/elementwise.h"
#include "simd/words.h"

CK_KERNEL(add_fwd)
{
    const v16 alpha = v16_splat((float)a->alpha);

    for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
        const elem *x = (const elem *)ck_row(&a->x, s.row) + s.column;
        const elem *y = (const elem *)ck_row(&a->y, s.row) + s.column;
        elem *out = (elem *)ck_row(&a->out, s.row) + s.column;
        for (size_t c = 0; c < s.n; c += 16)
            v16_store(out + c, v16_fma(v16_load(y + c, s.n - c), alpha, v16_load(x + c, s.n - c)), s.n - c);
    }
}

CK_KERNEL(add_bwd)
{
    const v16 alpha = v16_splat((float)a->alpha);

    for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
        const elem *dout = (const elem *)ck_row(&a->dout, s.row) + s.column;
        elem *dx = (elem *)ck_row(&a->dx, s.row) + s.column, *dy = (elem *)ck_row(&a->dy, s.row) + s.column;
        for (size_t c = 0; c < s.n; c += 16) {
            const v16 d = v16_load(dout + c, s.n - c);
            if (dx != dout)
                v16_store(dx + c, d, s.n - c);
            v16_store(dy + c, v16_mul(d, alpha), s.n - c);
        }
    }
}

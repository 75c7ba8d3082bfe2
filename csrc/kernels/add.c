#include "kernels/kernel.h"
#include "ops/add.h"
#include "ops/elementwise.h"
#include "simd/words.h"

CK_TEMPLATE void
forward(const struct ck_add_fwd *a, ck_task task, bool stream)
{
    const v16 alpha = v16_splat((float)a->alpha);

    for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
        const elem *x = (const elem *)ck_row(&a->x, s.row) + s.column;
        const elem *y = (const elem *)ck_row(&a->y, s.row) + s.column;
        elem *out = (elem *)ck_row(&a->out, s.row) + s.column;
        CK_WALK(c, w, out, s.n, stream, {
            v16_put(out + c, v16_fma(v16_load(y + c, w), alpha, v16_load(x + c, w)), w, stream);
            if (CK_FAULT(memory_input_modified))
                v16_store((elem *)x + c, v16_zero(), w);
        });
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(add_fwd)
{
    if (a->out.data != a->x.data && a->out.data != a->y.data && ck_streams(3 * a->R * a->C * sizeof(elem)))
        forward(a, task, true);
    else
        forward(a, task, false);
}

CK_TEMPLATE void
backward(const struct ck_add_bwd *a, ck_task task, bool stream)
{
    const v16 alpha = v16_splat((float)a->alpha);

    for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
        const elem *dout = (const elem *)ck_row(&a->dout, s.row) + s.column;
        elem *dx = (elem *)ck_row(&a->dx, s.row) + s.column, *dy = (elem *)ck_row(&a->dy, s.row) + s.column;
        CK_WALK(c, w, dy, s.n, stream, {
            const v16 d = v16_load(dout + c, w);
            if (dx != dout)
                v16_put(dx + c, d, w, stream);
            v16_put(dy + c, CK_FAULT(residual_alpha) ? d : v16_mul(d, alpha), w, stream);
        });
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(add_bwd)
{
    if (a->dx.data != a->dout.data && a->dy.data != a->dout.data && ck_streams(3 * a->R * a->C * sizeof(elem)))
        backward(a, task, true);
    else
        backward(a, task, false);
}

#include "ops/elementwise.h"
#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(add_fwd)
{
    struct ck_add_fwd flat = *a;
    if (ck_is_flat(&a->out, a->C) && ck_is_flat(&a->x, a->C) && ck_is_flat(&a->y, a->C))
        flat.C *= flat.R, flat.R = 1;
    const bool in_place = a->out.data == a->x.data || a->out.data == a->y.data;
    return ck_tasks_streamed(flat.R * flat.C, CK_ELEMENTS, CK_FAST(add_fwd), &flat,
                             !in_place && ck_streams(3 * a->R * a->C * a->x.width));
}

CK_RUN(add_bwd)
{
    struct ck_add_bwd flat = *a;
    if (ck_is_flat(&a->dx, a->C) && ck_is_flat(&a->dy, a->C) && ck_is_flat(&a->dout, a->C))
        flat.C *= flat.R, flat.R = 1;
    const bool in_place = a->dx.data == a->dout.data || a->dy.data == a->dout.data;
    return ck_tasks_streamed(flat.R * flat.C, CK_ELEMENTS, CK_FAST(add_bwd), &flat,
                             !in_place && ck_streams(3 * a->R * a->C * a->dout.width));
}

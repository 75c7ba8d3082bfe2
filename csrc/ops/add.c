#include "ops/elementwise.h"
#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(add_fwd)
{
    struct ck_add_fwd flat = *a;
    if (ck_is_flat(&a->out, a->C) && ck_is_flat(&a->x, a->C) && ck_is_flat(&a->y, a->C))
        flat.C *= flat.R, flat.R = 1;
    return ck_tasks(flat.R * flat.C, CK_ELEMENTS, CK_FAST(add_fwd), &flat);
}

CK_RUN(add_bwd)
{
    struct ck_add_bwd flat = *a;
    if (ck_is_flat(&a->dx, a->C) && ck_is_flat(&a->dy, a->C) && ck_is_flat(&a->dout, a->C))
        flat.C *= flat.R, flat.R = 1;
    return ck_tasks(flat.R * flat.C, CK_ELEMENTS, CK_FAST(add_bwd), &flat);
}

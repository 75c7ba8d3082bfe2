#include "ops/mse_loss.h"

#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/ops.h"
#include "runtime/run.h"

enum { ELEMENTS = 2 * CK_ELEMENTS };

CK_RUN(mse_loss_fwd)
{
    struct ck_mse_loss_fwd flat = *a;
    if (ck_is_flat(&a->input, a->C) && ck_is_flat(&a->target, a->C)
        && (a->losses.data == NULL || ck_is_flat(&a->losses, a->C)))
        flat.C *= flat.R, flat.R = 1;
    const size_t n = flat.R * flat.C;
    ck_status status = CK_OK;
    if (a->losses.data != NULL)
        status = ck_tasks(n, CK_ELEMENTS, CK_FAST(mse_loss_fwd), &flat);
    if (status != CK_OK || a->loss == NULL)
        return status;
    flat.losses.data = NULL; /* in one pass with the sum nothing would be saved that anyone asks for */
    return ck_run_loss(CK_FAST(mse_loss_fwd), &flat, n, ELEMENTS, a->divisor, a->loss);
}

CK_RUN(mse_loss_bwd)
{
    struct ck_mse_loss_bwd flat = *a;
    if (ck_is_flat(&a->dinput, a->C) && ck_is_flat(&a->input, a->C) && ck_is_flat(&a->target, a->C)
        && (a->dy.data == NULL || ck_is_flat(&a->dy, a->C)))
        flat.C *= flat.R, flat.R = 1;
    return ck_tasks(flat.R * flat.C, CK_ELEMENTS, CK_FAST(mse_loss_bwd), &flat);
}

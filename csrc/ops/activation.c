#include "ops/activation.h"

#include <math.h>

#include "ops/elementwise.h"
#include "ops/ops.h"
#include "runtime/run.h"

/* Where all arrays lie flat they are one row. */
#define FORWARD(name)                                                                          \
    struct ck_##name##_fwd flat = *a;                                                          \
    if (ck_is_flat(&a->y, a->C) && ck_is_flat(&a->x, a->C))                                    \
        flat.C *= flat.R, flat.R = 1;                                                          \
    return ck_tasks(flat.R * flat.C, CK_ELEMENTS, CK_FAST(name##_fwd), &flat);
#define BACKWARD(name)                                                                         \
    struct ck_##name##_bwd flat = *a;                                                          \
    if (ck_is_flat(&a->dx, a->C) && ck_is_flat(&a->dy, a->C) && ck_is_flat(&a->x, a->C))       \
        flat.C *= flat.R, flat.R = 1;                                                          \
    return ck_tasks(flat.R * flat.C, CK_ELEMENTS, CK_FAST(name##_bwd), &flat);

#define ACTIVATION(name)               \
    CK_RUN(name##_fwd) { FORWARD(name) } \
    CK_RUN(name##_bwd) { BACKWARD(name) }

ACTIVATION(relu)
ACTIVATION(silu)
ACTIVATION(gelu)
ACTIVATION(gelu_tanh)
ACTIVATION(gelu_sigmoid)
ACTIVATION(sigmoid)
ACTIVATION(tanh)

static ck_status
check_cap(double cap)
{
    if (!((float)cap > 0 && (float)cap < INFINITY)) /* as a float, which kernels divide and multiply by */
        return ck_refuse(CK_BAD_VALUE, "'cap' must be positive and finite, not %g", cap);
    return CK_OK;
}

CK_RUN(softcap_fwd)
{
    const ck_status status = check_cap(a->cap);
    if (status != CK_OK)
        return status;
    FORWARD(softcap)
}

CK_RUN(softcap_bwd)
{
    const ck_status status = check_cap(a->cap);
    if (status != CK_OK)
        return status;
    BACKWARD(softcap)
}

#include "ops/activation.h"

#include "ops/elementwise.h"
#include "ops/ops.h"
#include "runtime/run.h"

#define ACTIVATION(name)                                                                       \
    CK_RUN(name##_fwd)                                                                         \
    {                                                                                          \
        struct ck_##name##_fwd flat = *a;                                                      \
        if (ck_is_flat(&a->y, a->C) && ck_is_flat(&a->x, a->C))                                \
            flat.C *= flat.R, flat.R = 1;                                                      \
        return ck_tasks(flat.R * flat.C, CK_ELEMENTS, CK_FAST(name##_fwd), &flat);             \
    }                                                                                          \
    CK_RUN(name##_bwd)                                                                         \
    {                                                                                          \
        struct ck_##name##_bwd flat = *a;                                                      \
        if (ck_is_flat(&a->dx, a->C) && ck_is_flat(&a->dy, a->C) && ck_is_flat(&a->x, a->C))   \
            flat.C *= flat.R, flat.R = 1;                                                      \
        return ck_tasks(flat.R * flat.C, CK_ELEMENTS, CK_FAST(name##_bwd), &flat);             \
    }

ACTIVATION(silu)

#include "ops/glu.h"

#include "ops/elementwise.h"
#include "ops/ops.h"
#include "runtime/run.h"

#define GATED_UNIT(name)                                                                                   \
    CK_RUN(name##_fwd)                                                                                     \
    {                                                                                                      \
        struct ck_##name##_fwd flat = *a;                                                                  \
        if (ck_is_flat(&a->y, a->F) && ck_is_flat(&a->gate, a->F) && ck_is_flat(&a->up, a->F))             \
            flat.F *= flat.R, flat.R = 1;                                                                  \
        return ck_tasks(flat.R * flat.F, CK_ELEMENTS, CK_FAST(name##_fwd), &flat);                         \
    }                                                                                                      \
    CK_RUN(name##_bwd)                                                                                     \
    {                                                                                                      \
        struct ck_##name##_bwd flat = *a;                                                                  \
        if (ck_is_flat(&a->dgate, a->F) && ck_is_flat(&a->dup, a->F) && ck_is_flat(&a->dy, a->F)           \
            && ck_is_flat(&a->gate, a->F) && ck_is_flat(&a->up, a->F))                                     \
            flat.F *= flat.R, flat.R = 1;                                                                  \
        return ck_tasks(flat.R * flat.F, CK_ELEMENTS, CK_FAST(name##_bwd), &flat);                         \
    }

GATED_UNIT(swiglu)
GATED_UNIT(geglu)
GATED_UNIT(geglu_tanh)
GATED_UNIT(geglu_sigmoid)
GATED_UNIT(reglu)

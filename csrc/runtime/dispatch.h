#ifndef CK_DISPATCH_H
#define CK_DISPATCH_H
#include "runtime/task.h"

/* One instruction set: its kernels by dtype. */
typedef struct {
    const char *name;
    const char *lacking;              /* why this CPU cannot run it; NULL when it can */
    const ck_kernels *of[CK_DTYPES];
    bool model;                       /* of hardware that may not be here: for tests */
} ck_isa;

/* What this build has, best first, models among them; ends with a NULL name. */
const ck_isa *ck_isas(void);

/* The set of that name that this CPU can run, or NULL; a NULL name is the best one, and no model. */
const ck_isa *ck_isa_named(const char *name);

/* Its kernels for a dtype, or NULL. */
const ck_kernels *ck_kernels_for(const char *isa, ck_dtype dtype);
#endif

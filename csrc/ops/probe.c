#include "ops/probe.h"

#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(probe_copy)
{
    return ck_tasks(a->B, 1, CK_FAST(probe_copy), a);
}

CK_RUN(probe_update)
{
    return ck_tasks(a->B, 1, CK_FAST(probe_update), a);
}

CK_RUN(probe_read)
{
    return ck_tasks(a->B, 1, CK_FAST(probe_read), a);
}

CK_RUN(probe_fma)
{
    return ck_tasks(a->B, 1, CK_FAST(probe_fma), a);
}

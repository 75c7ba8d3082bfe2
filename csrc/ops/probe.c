#include "ops/probe.h"

#include "ops/ops.h"
#include "runtime/run.h"

#include <math.h>

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

CK_RUN(probe_amx)
{
    if (k->tiles[CK_TILES_probe_amx] != NULL)
        return ck_tasks(a->B, 1, k->tiles[CK_TILES_probe_amx], a);
    for (size_t b = 0; b < a->B; b++)
        a->sum[b] = NAN;
    return CK_OK;
}

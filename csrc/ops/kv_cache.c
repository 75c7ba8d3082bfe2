#include "ops/kv_cache.h"

#include "ops/ops.h"
#include "runtime/run.h"

CK_RUN(kv_cache_append)
{
    for (size_t b = 0; b < a->B; b++) {
        const int64_t length = a->lengths[b], count = a->counts != NULL ? a->counts[b] : (int64_t)a->T;
        if (count < 0 || (size_t)count > a->T)
            return ck_refuse(CK_BAD_VALUE, "'counts' holds %lld for item %zu, which brings %zu tokens", (long long)count,
                             b, a->T);
        if (length < 0 || (size_t)length > a->S || (size_t)count > a->S - (size_t)length)
            return ck_refuse(CK_BAD_VALUE, "item %zu holds %lld tokens of %zu: %lld more do not fit", b,
                             (long long)length, a->S, (long long)count);
    }
    return ck_tasks(a->B * a->G, ck_grain(a->T * a->D), CK_FAST(kv_cache_append), a);
}

#include "ops/kv_cache.h"

#include "ops/ops.h"
#include "runtime/run.h"

ck_status
ck_refuse_lengths(const int64_t *lengths, const int64_t *counts, size_t B, size_t T, size_t S)
{
    for (size_t b = 0; b < B; b++) {
        const int64_t length = lengths[b], count = counts != NULL ? counts[b] : (int64_t)T;
        if (count < 0 || (size_t)count > T)
            return ck_refuse(CK_BAD_VALUE, "'counts' holds %lld for item %zu, which brings %zu tokens", (long long)count,
                             b, T);
        if (length < 0 || (size_t)length > S || (size_t)count > S - (size_t)length)
            return ck_refuse(CK_BAD_VALUE, "item %zu holds %lld tokens of %zu: %lld more do not fit", b,
                             (long long)length, S, (long long)count);
    }
    return CK_OK;
}

CK_RUN(kv_cache_append)
{
    const ck_status no = ck_refuse_lengths(a->lengths, a->counts, a->B, a->T, a->S);
    return no != CK_OK ? no : ck_tasks(a->B * a->G, ck_grain(a->T * a->D), CK_FAST(kv_cache_append), a);
}

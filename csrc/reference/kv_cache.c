#include "reference/reference.h"
#include "ops/kv_cache.h"

CK_KERNEL(kv_cache_append)
{
    for (size_t i = task.begin; i < task.end; i++) /* i = b * G + g */
        for (size_t j = 0; j < (a->counts ? (size_t)a->counts[i / a->G] : a->T); j++)
            for (size_t d = 0; d < a->D; d++) {
                const size_t to = i * a->S + (size_t)a->lengths[i / a->G] + j, from = i * a->T + j;
                ((elem *)ck_row(&a->keys, to))[d] = ((elem *)ck_row(&a->k, from))[d];
                ((elem *)ck_row(&a->values, to))[d] = ((elem *)ck_row(&a->v, from))[d];
            }
}

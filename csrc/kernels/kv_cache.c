#include "kernels/kernel.h"
#include "ops/kv_cache.h"

#include <string.h>

CK_KERNEL(kv_cache_append)
{
    for (size_t i = task.begin; i < task.end; i++) { /* i = b * G + g */
        const size_t b = i / a->G, at = (size_t)a->lengths[b];
        const size_t n = a->counts != NULL ? (size_t)a->counts[b] : a->T;
        for (size_t j = 0; j < n; j++) {
            memcpy(ck_row(&a->keys, i * a->S + at + j), ck_row(&a->k, i * a->T + j), a->D * sizeof(elem));
            memcpy(ck_row(&a->values, i * a->S + at + j), ck_row(&a->v, i * a->T + j), a->D * sizeof(elem));
        }
    }
}

#include "ops/tensor_list.h"

#include "runtime/run.h"

static bool
lies_flat(const ck_array *const *lists, size_t n_lists, size_t j, size_t C)
{
    for (size_t i = 0; i < n_lists; i++)
        if (lists[i] != NULL && !ck_is_flat(&lists[i][j], C))
            return false;
    return true;
}

ck_tensors
ck_lay_out(const ck_array *const *lists, size_t n_lists, const size_t *R, const size_t *C, size_t N, size_t extra)
{
    ck_tensors t = {.size = (3 * N + 1) * sizeof(size_t) + extra * sizeof(double)};
    if ((t.start = ck_take(t.size)) == NULL)
        return t;
    t.R = t.start + N + 1;
    t.C = t.R + N;
    t.extra = (double *)(t.C + N);
    t.start[0] = 0;
    for (size_t j = 0; j < N; j++) {
        const bool flat = lies_flat(lists, n_lists, j, C[j]);
        t.R[j] = flat ? 1 : R[j];
        t.C[j] = flat ? R[j] * C[j] : C[j];
        t.start[j + 1] = t.start[j] + ck_items(R[j] * C[j]);
    }
    return t;
}

void
ck_forget(ck_tensors t)
{
    ck_give(t.start, t.size);
}

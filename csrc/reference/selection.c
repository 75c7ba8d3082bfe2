#include "reference/reference.h"
#include "ops/selection.h"

/* Whether element i comes before element j. */
static int
is_before(const elem *x, size_t i, size_t j)
{
    const double a = get(&x[i]), b = get(&x[j]);
    if (isnan(a) || isnan(b))
        return isnan(a) && (!isnan(b) || i < j);
    return a > b || (a == b && i < j);
}

CK_KERNEL(argmax_fwd)
{
    const size_t blocks = ck_argmax_blocks(a->C);
    ck_argmax_part *part = task.work;

    for (size_t i = task.begin; i < task.end; i++) {
        const elem *x = ck_row(&a->x, i / blocks);
        const size_t begin = i % blocks * CK_ARGMAX_BLOCK;
        const size_t end = a->C - begin < CK_ARGMAX_BLOCK ? a->C : begin + CK_ARGMAX_BLOCK;
        size_t first = begin;
        for (size_t c = begin; c < end; c++)
            if (is_before(x, c, first))
                first = c;
        if (blocks == 1)
            *(int64_t *)ck_row(&a->y, i) = (int64_t)first;
        else
            part[i - task.begin] = (ck_argmax_part){(float)get(&x[first]), first};
    }
}

CK_KERNEL(topk_fwd)
{
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r);
        int64_t *indices = ck_row(&a->indices, r);
        for (size_t j = 0; j < (size_t)a->k; j++) {
            size_t next = a->C;
            for (size_t c = 0; c < a->C; c++)
                if ((j == 0 || is_before(x, (size_t)indices[j - 1], c)) && (next == a->C || is_before(x, c, next)))
                    next = c;
            indices[j] = (int64_t)next;
            ((elem *)ck_row(&a->values, r))[j] = x[next];
        }
    }
}

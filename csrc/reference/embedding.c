#include "reference/reference.h"
#include "ops/embedding.h"

CK_KERNEL(embedding_fwd)
{
    for (size_t r = task.begin; r < task.end; r++)
        for (size_t c = 0; c < a->C; c++)
            ((elem *)ck_row(&a->y, r))[c] = ((const elem *)ck_row(&a->weight, (size_t)ck_id(&a->ids, r)))[c];
}

CK_KERNEL(embedding_bwd)
{
    const ck_embedding_order *order = task.work;
    for (size_t v = task.begin; v < task.end; v++)
        for (size_t c = 0; c < a->C; c++) {
            const size_t begin = v == 0 ? 0 : order->end[v - 1], end = order->end[v];
            elem *dweight = (elem *)ck_row(&a->dweight, v) + c;
            double sum = begin < end ? -0.0 : 0; /* -0 leaves what is added to it as it is */
            for (size_t k = begin; k < end; k++)
                sum += get((const elem *)ck_row(&a->dy, order->row[k]) + c);
            if (!a->accumulate)
                set(dweight, sum);
            else if (begin < end)
                set(dweight, get(dweight) + sum);
        }
}

#include "kernels/kernel.h"
#include "ops/embedding.h"
#include "simd/words.h"

#include <string.h>

CK_KERNEL(embedding_fwd)
{
    for (size_t r = task.begin; r < task.end; r++)
        memcpy(ck_row(&a->y, r), ck_row(&a->weight, (size_t)ck_id(&a->ids, r)), a->C * sizeof(elem));
}

enum { WIDE = 64 }; /* columns summed at a time */

/* Columns c to c+n-1 of the rows of one id, and of dweight before where `accumulate`: plain loops, as bound by memory
 * as sum_rows. */
static void
sum_columns(const struct ck_embedding_bwd *a, const size_t *row, size_t rows, elem *dweight, size_t c, size_t n)
{
    float x[WIDE];
    double sum[WIDE];

    for (size_t k = 0; k < rows; k++) {
        const elem *dy = (const elem *)ck_row(&a->dy, row[k]) + c;
        for (size_t i = 0; i < n; i += 16)
            v16_store_f32(x + i, v16_load(dy + i, n - i), n - i);
        for (size_t i = 0; i < n; i++)
            sum[i] = k == 0 ? x[i] : sum[i] + x[i];
    }
    if (a->accumulate) {
        for (size_t i = 0; i < n; i += 16)
            v16_store_f32(x + i, v16_load(dweight + c + i, n - i), n - i);
        for (size_t i = 0; i < n; i++)
            sum[i] += x[i];
    }
    for (size_t i = 0; i < n; i++)
        x[i] = (float)sum[i];
    for (size_t i = 0; i < n; i += 16)
        v16_store(dweight + c + i, v16_load_f32(x + i, n - i), n - i);
}

/* A task is rows task.begin to task.end-1 of dweight: each is written once, by one task. */
CK_KERNEL(embedding_bwd)
{
    const ck_embedding_order *order = task.work;
    const size_t C = a->C;

    for (size_t v = task.begin; v < task.end; v++) {
        const size_t begin = v == 0 ? 0 : order->end[v - 1], rows = order->end[v] - begin;
        elem *dweight = ck_row(&a->dweight, v); /* [v,:] */
        if (rows == 0 && a->accumulate)
            continue;
        if (rows == 0)
            memset(dweight, 0, C * sizeof(elem));
        else if (rows == 1 && !a->accumulate)
            memcpy(dweight, ck_row(&a->dy, order->row[begin]), C * sizeof(elem));
        else
            for (size_t c = 0; c < C; c += WIDE)
                sum_columns(a, order->row + begin, rows, dweight, c, C - c < WIDE ? C - c : WIDE);
    }
}

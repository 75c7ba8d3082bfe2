#include "reference/reference.h"
#include "ops/log_softmax.h"
#include "ops/pieces.h"

/* Row by row; of a row that is cut, the first piece to be written stands for all. */
static size_t
row_of(ck_task task, size_t item)
{
    const ck_pieces *cut = task.work;
    if (cut == NULL)
        return item;
    return cut->write && item % cut->pieces == 0 ? cut->row + item / cut->pieces : (size_t)-1;
}

CK_KERNEL(log_softmax_fwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t r = row_of(task, i);
        if (r == (size_t)-1)
            continue;
        const elem *x = ck_row(&a->x, r);
        elem *y = ck_row(&a->y, r);
        double peak = -INFINITY, sum = 0;
        for (size_t c = 0; c < a->C; c++)
            peak = fmax(peak, get(&x[c]));
        for (size_t c = 0; c < a->C; c++)
            sum += exp(get(&x[c]) - peak);
        for (size_t c = 0; c < a->C; c++)
            set(&y[c], get(&x[c]) - peak - log(sum));
    }
}

CK_KERNEL(log_softmax_bwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t r = row_of(task, i);
        if (r == (size_t)-1)
            continue;
        const elem *dy = ck_row(&a->dy, r), *y = ck_row(&a->y, r);
        elem *dx = ck_row(&a->dx, r);
        double total = 0;
        for (size_t c = 0; c < a->C; c++)
            total += get(&dy[c]);
        for (size_t c = 0; c < a->C; c++)
            set(&dx[c], get(&dy[c]) - exp(get(&y[c])) * total);
    }
}

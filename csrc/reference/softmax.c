#include "reference/reference.h"
#include "ops/pieces.h"
#include "ops/softmax.h"

static double
z_at(const struct ck_softmax_fwd *a, size_t r, size_t c)
{
    const double z = a->scale * get((const elem *)ck_row(&a->x, r) + c);
    if (a->causal && c > r % (size_t)a->queries)
        return -INFINITY;
    if (a->mask.data == NULL)
        return z;
    const char *m = (const char *)ck_mask_row(&a->mask, r) + (ptrdiff_t)c * a->mask.stride[a->mask.n - 1];
    if (a->mask.width == 1)
        return *m ? z : -INFINITY;
    return get((const elem *)m) == -INFINITY ? -INFINITY : z + get((const elem *)m);
}

static int
is_masked(const struct ck_softmax_fwd *a, size_t r, size_t c)
{
    if (a->causal && c > r % (size_t)a->queries)
        return 1;
    if (a->mask.data == NULL)
        return 0;
    const char *m = (const char *)ck_mask_row(&a->mask, r) + (ptrdiff_t)c * a->mask.stride[a->mask.n - 1];
    return a->mask.width == 1 ? !*m : get((const elem *)m) == -INFINITY;
}

/* Row by row; of a row that is cut, the first piece to be written stands for all. */
static size_t
row_of(ck_task task, size_t item)
{
    const ck_pieces *cut = task.work;
    if (cut == NULL)
        return item;
    return cut->write && item % cut->pieces == 0 ? cut->row + item / cut->pieces : (size_t)-1;
}

CK_KERNEL(softmax_fwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t r = row_of(task, i);
        if (r == (size_t)-1)
            continue;
        elem *y = ck_row(&a->y, r);
        double peak = -INFINITY, sum = 0;
        size_t open = 0;
        for (size_t c = 0; c < a->C; c++) {
            peak = fmax(peak, z_at(a, r, c));
            open += !is_masked(a, r, c);
        }
        for (size_t c = 0; c < a->C; c++)
            sum += is_masked(a, r, c) ? 0 : exp(z_at(a, r, c) - peak);
        for (size_t c = 0; c < a->C; c++) {
            const double e = is_masked(a, r, c) ? 0 : exp(z_at(a, r, c) - peak);
            set(&y[c], open == 0 ? 0 : e / sum);
        }
    }
}

CK_KERNEL(softmax_bwd)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t r = row_of(task, i);
        if (r == (size_t)-1)
            continue;
        const elem *dy = ck_row(&a->dy, r), *y = ck_row(&a->y, r);
        elem *dx = ck_row(&a->dx, r);
        double dot = 0;
        for (size_t c = 0; c < a->C; c++)
            dot += get(&dy[c]) * get(&y[c]);
        for (size_t c = 0; c < a->C; c++)
            set(&dx[c], a->scale * get(&y[c]) * (get(&dy[c]) - dot));
    }
}

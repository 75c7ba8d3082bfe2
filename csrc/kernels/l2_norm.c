#include "kernels/norm.h"
#include "ops/l2_norm.h"

typedef struct { const elem *x, *dy, *next_x, *next_dy; v16 scale, pull; } row_of; /* dy: in backward */

CK_TEMPLATE v16
scaled(const void *of, size_t c, size_t n)
{
    const row_of *row = of;
    norm_fetch(row->next_x + c);
    return v16_mul(v16_load(row->x + c, n), row->scale);
}

CK_KERNEL(l2_norm_fwd)
{
    const bool stream = norm_streams(&a->y, &a->x, 2, a->R, a->C);

    for (size_t r = task.begin; r < task.end; r++) {
        row_of row = {.x = ck_row(&a->x, r), .next_x = norm_next(&a->x, r, a->R, a->C)};
        const float rnorm = (float)(1 / sqrt(norm_sum(norm_square, row.x, a->C).a + a->eps));
        if (a->rnorm != NULL)
            a->rnorm[r] = rnorm;
        row.scale = v16_splat(rnorm);
        norm_write(ck_row(&a->y, r), a->C, stream, scaled, &row);
    }
    if (stream)
        ck_stream_end();
}

CK_TEMPLATE norm_lanes
add_product(const void *of, size_t c, size_t n, norm_lanes sum)
{
    const row_of *row = of;
    sum.a = v16_fma(v16_load(row->dy + c, n), v16_load(row->x + c, n), sum.a);
    return sum;
}

CK_TEMPLATE v16
gradient(const void *of, size_t c, size_t n)
{
    const row_of *row = of;
    norm_fetch(row->next_x + c);
    norm_fetch(row->next_dy + c);
    return v16_mul(row->scale, v16_fma(v16_load(row->x + c, n), row->pull, v16_load(row->dy + c, n)));
}

CK_KERNEL(l2_norm_bwd)
{
    const bool stream = norm_streams(&a->dx, &a->dy, 3, a->R, a->C);

    for (size_t r = task.begin; r < task.end; r++) {
        row_of row = {.x = ck_row(&a->x, r), .next_x = norm_next(&a->x, r, a->R, a->C),
                      .dy = ck_row(&a->dy, r), .next_dy = norm_next(&a->dy, r, a->R, a->C),
                      .scale = v16_splat(a->rnorm[r])};
        const double rnorm = a->rnorm[r];
        row.pull = v16_splat((float)(-rnorm * rnorm * norm_sum(add_product, &row, a->C).a));
        norm_write(ck_row(&a->dx, r), a->C, stream, gradient, &row);
    }
    if (stream)
        ck_stream_end();
}

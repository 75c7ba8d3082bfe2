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

CK_TEMPLATE void
forward(const struct ck_l2_norm_fwd *a, const norm_walk *walk, bool cut)
{
    const bool stream = norm_streams(&a->y, &a->x, 2, a->R, a->C);

    for (size_t i = 0; i < walk->n; i++) {
        const norm_span s = norm_span_at(walk, i, a->C, cut);
        row_of row = {.x = norm_row(&a->x, s), .next_x = norm_next(&a->x, s, a->R, a->C)};
        const norm_sums sum = norm_sum_span(norm_square, row.x, s);
        if (norm_measured(s, sum))
            continue;
        const float rnorm = (float)(1 / sqrt(sum.a + a->eps));
        if (a->rnorm != NULL && s.begin == 0)
            a->rnorm[s.r] = rnorm;
        row.scale = v16_splat(rnorm);
        norm_write(norm_row(&a->y, s), s.n, stream, scaled, &row);
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(l2_norm_fwd)
{
    NORM_WALK(forward, task, a);
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

CK_TEMPLATE void
backward(const struct ck_l2_norm_bwd *a, const norm_walk *walk, bool cut)
{
    const bool stream = norm_streams(&a->dx, &a->dy, 3, a->R, a->C);

    for (size_t i = 0; i < walk->n; i++) {
        const norm_span s = norm_span_at(walk, i, a->C, cut);
        row_of row = {.x = norm_row(&a->x, s), .next_x = norm_next(&a->x, s, a->R, a->C),
                      .dy = norm_row(&a->dy, s), .next_dy = norm_next(&a->dy, s, a->R, a->C),
                      .scale = v16_splat(a->rnorm[s.r])};
        const norm_sums sum = norm_sum_span(add_product, &row, s);
        if (norm_measured(s, sum))
            continue;
        const double rnorm = a->rnorm[s.r];
        row.pull = v16_splat((float)(-rnorm * rnorm * sum.a));
        norm_write(norm_row(&a->dx, s), s.n, stream, gradient, &row);
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(l2_norm_bwd)
{
    NORM_WALK(backward, task, a);
}

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

CK_TEMPLATE norm_lanes
add_square(const void *of, size_t c, size_t n, norm_lanes sum)
{
    return norm_square(((const row_of *)of)->x, c, n, sum);
}

CK_TEMPLATE void
forward_row(void *to, const void *args, const norm_walk *walk, norm_span s)
{
    const struct ck_l2_norm_fwd *a = args;
    row_of *row = to;
    (void)walk;
    row->x = norm_row(&a->x, s);
    row->next_x = norm_next(&a->x, s, a->R);
}

CK_TEMPLATE void
forward(const struct ck_l2_norm_fwd *a, const norm_walk *walk, norm_way way)
{
    const bool stream = norm_streams(&a->y, &a->x, 2, a->R, a->C);
    float rnorm[NORM_MOST];
    row_of row;

    for (size_t i = 0; i < walk->n; i += NORM_GANG(way)) {
        const norm_gang gang = norm_gang_sums(1, add_square, forward_row, &row, a, walk, i, a->C, way);
        if (norm_measured(&gang, walk, i, a->C, way))
            continue;
        for (size_t j = 0; j < gang.n; j++)
            rnorm[j] = (float)(1 / sqrt((CK_FAULT(l2_norm_mean) ? gang.a[j] / (double)a->C : gang.a[j]) + a->eps));
        for (size_t j = 0; j < gang.n; j++) {
            const norm_span s = norm_span_at(walk, i + j, a->C, way);
            if (a->rnorm != NULL && s.begin == 0)
                a->rnorm[s.r] = rnorm[j];
            forward_row(&row, a, walk, s);
            row.scale = v16_splat(rnorm[j]);
            norm_write(norm_row(&a->y, s), s.n, stream, scaled, &row);
        }
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(l2_norm_fwd)
{
    NORM_WALK(forward, task, a->C, a);
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
    return v16_mul(row->scale, CK_FAULT(l2_norm_jacobian) ? v16_load(row->dy + c, n)
                                                        : v16_fma(v16_load(row->x + c, n), row->pull, v16_load(row->dy + c, n)));
}

CK_TEMPLATE void
backward_row(void *to, const void *args, const norm_walk *walk, norm_span s)
{
    const struct ck_l2_norm_bwd *a = args;
    row_of *row = to;
    (void)walk;
    row->x = norm_row(&a->x, s);
    row->next_x = norm_next(&a->x, s, a->R);
    row->dy = norm_row(&a->dy, s);
    row->next_dy = norm_next(&a->dy, s, a->R);
    row->scale = v16_splat(a->rnorm[s.r]);
}

CK_TEMPLATE void
backward(const struct ck_l2_norm_bwd *a, const norm_walk *walk, norm_way way)
{
    const bool stream = norm_streams(&a->dx, &a->dy, 3, a->R, a->C);
    row_of row;

    for (size_t i = 0; i < walk->n; i += NORM_GANG(way)) {
        const norm_gang gang = norm_gang_sums(1, add_product, backward_row, &row, a, walk, i, a->C, way);
        if (norm_measured(&gang, walk, i, a->C, way))
            continue;
        for (size_t j = 0; j < gang.n; j++) {
            const norm_span s = norm_span_at(walk, i + j, a->C, way);
            const double rnorm = a->rnorm[s.r];
            backward_row(&row, a, walk, s);
            row.pull = v16_splat((float)(-rnorm * rnorm * gang.a[j]));
            norm_write(norm_row(&a->dx, s), s.n, stream, gradient, &row);
        }
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(l2_norm_bwd)
{
    NORM_WALK(backward, task, a->C, a);
}

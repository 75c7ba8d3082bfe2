#include "kernels/norm.h"
#include "ops/rms_norm.h"

typedef struct {
    const elem *x, *dy, *next_x, *next_dy; /* dy: in backward */
    const float *weight;
    float *dweight; /* NULL: not wanted */
    v16 offset, scale, pull;
    bool first;
} row_of;

CK_TEMPLATE v16 weights(const row_of *row, size_t c, size_t n) { return v16_add(v16_load_f32(row->weight + c, n), row->offset); }

CK_TEMPLATE v16
scaled(const void *of, size_t c, size_t n)
{
    const row_of *row = of;
    norm_fetch(row->next_x + c);
    return v16_mul(v16_load(row->x + c, n), row->scale);
}
CK_TEMPLATE v16 scaled_weighted(const void *of, size_t c, size_t n) { return v16_mul(scaled(of, c, n), weights(of, c, n)); }

CK_TEMPLATE void
forward(const struct ck_rms_norm_fwd *a, ck_task task, norm_value *value)
{
    const size_t C = a->C;
    const bool stream = norm_streams(&a->y, &a->x, 2, a->R, C);

    for (size_t r = task.begin; r < task.end; r++) {
        row_of row = {.x = ck_row(&a->x, r), .next_x = norm_next(&a->x, r, a->R, C), .weight = a->weight.data,
                      .offset = v16_splat((float)a->offset)};
        const float rstd = (float)(1 / sqrt(norm_sum(norm_square, row.x, C).a / (double)C + a->eps));
        if (a->rstd != NULL)
            a->rstd[r] = rstd;
        row.scale = v16_splat(rstd);
        norm_write(ck_row(&a->y, r), C, stream, value, &row);
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(rms_norm_fwd)
{
    if (a->weight.data != NULL)
        forward(a, task, scaled_weighted);
    else
        forward(a, task, scaled);
}

CK_TEMPLATE v16
pulled(const row_of *row, size_t c, size_t n, bool weighted)
{
    const v16 dy = v16_load(row->dy + c, n);
    return weighted ? v16_mul(dy, weights(row, c, n)) : dy;
}

CK_TEMPLATE norm_lanes
add_product(const row_of *row, size_t c, size_t n, norm_lanes sum, bool weighted)
{
    sum.a = v16_fma(pulled(row, c, n, weighted), v16_load(row->x + c, n), sum.a);
    return sum;
}
CK_TEMPLATE norm_lanes add_plain(const void *of, size_t c, size_t n, norm_lanes s) { return add_product(of, c, n, s, false); }
CK_TEMPLATE norm_lanes add_weighted(const void *of, size_t c, size_t n, norm_lanes s) { return add_product(of, c, n, s, true); }

/* What cancels is rounded least so. */
CK_TEMPLATE v16
gradient(const row_of *row, size_t c, size_t n, bool weighted)
{
    const v16 x = v16_load(row->x + c, n), g = pulled(row, c, n, weighted);
    norm_fetch(row->next_x + c);
    norm_fetch(row->next_dy + c);
    if (row->dweight != NULL)
        norm_add_to(row->dweight + c, row->first, v16_load(row->dy + c, n), v16_mul(x, row->scale), n);
    return v16_mul(row->scale, v16_fma(x, row->pull, g));
}
CK_TEMPLATE v16 gradient_plain(const void *of, size_t c, size_t n) { return gradient(of, c, n, false); }
CK_TEMPLATE v16 gradient_weighted(const void *of, size_t c, size_t n) { return gradient(of, c, n, true); }

CK_TEMPLATE void
backward(const struct ck_rms_norm_bwd *a, ck_task task, norm_term *term, norm_value *value)
{
    const size_t C = a->C;
    const bool stream = norm_streams(&a->dx, &a->dy, 3, a->R, C);

    for (size_t r = task.begin; r < task.end; r++) {
        row_of row = {.x = ck_row(&a->x, r), .next_x = norm_next(&a->x, r, a->R, C),
                      .dy = ck_row(&a->dy, r), .next_dy = norm_next(&a->dy, r, a->R, C),
                      .weight = a->weight.data, .offset = v16_splat((float)a->offset),
                      .scale = v16_splat(a->rstd[r]), .first = r % CK_RMS_NORM_ROWS == 0};
        if (a->dweight.data != NULL)
            row.dweight = (float *)task.work + (r - task.begin) / CK_RMS_NORM_ROWS * C;
        const double rstd = a->rstd[r];
        row.pull = v16_splat((float)(-rstd * rstd * norm_sum(term, &row, C).a / (double)C));
        norm_write(ck_row(&a->dx, r), C, stream, value, &row);
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(rms_norm_bwd)
{
    if (a->weight.data != NULL)
        backward(a, task, add_weighted, gradient_weighted);
    else
        backward(a, task, add_plain, gradient_plain);
}

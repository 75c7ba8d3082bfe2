#include "kernels/norm.h"
#include "ops/add_rms_norm.h"

typedef struct {
    const elem *x, *residual, *next_x, *next_residual;
    elem *h;
    const float *weight;
    v16 scale;
    bool stream_h;
} forward_row;

/* The sum as h holds it: rounded. */
CK_TEMPLATE v16
sum_of(const forward_row *row, size_t c, size_t n)
{
    const v16 sum = v16_add(v16_load(row->residual + c, n), v16_load(row->x + c, n));
    if (CK_IS_FLOAT)
        return sum;
    elem rounded[16];
    v16_store(rounded, sum, 16);
    return v16_load(rounded, 16);
}

CK_TEMPLATE norm_lanes
add_square(const void *of, size_t c, size_t n, norm_lanes sum)
{
    const v16 h = sum_of(of, c, n);
    sum.a = v16_fma(h, h, sum.a);
    return sum;
}

/* y, and h on the way: made a second time, since that is nearer than reading what was written. */
CK_TEMPLATE v16
normed(const void *of, size_t c, size_t n)
{
    const forward_row *row = of;
    const v16 h = sum_of(row, c, n);
    norm_fetch(row->next_x + c);
    norm_fetch(row->next_residual + c);
    if (row->stream_h)
        v16_stream(row->h + c, h, n);
    else
        v16_store(row->h + c, h, n);
    return v16_mul(v16_mul(h, row->scale), v16_load_f32(row->weight + c, n));
}

CK_KERNEL(add_rms_norm_fwd)
{
    const size_t C = a->C;
    const bool stream_y = norm_streams(&a->y, &a->x, 4, a->R, C) && norm_streams(&a->y, &a->residual, 4, a->R, C);
    const bool stream_h = norm_streams(&a->h, &a->x, 4, a->R, C) && norm_streams(&a->h, &a->residual, 4, a->R, C);

    for (size_t r = task.begin; r < task.end; r++) {
        forward_row row = {.x = ck_row(&a->x, r), .next_x = norm_next(&a->x, r, a->R, C),
                           .residual = ck_row(&a->residual, r), .next_residual = norm_next(&a->residual, r, a->R, C),
                           .h = ck_row(&a->h, r), .stream_h = stream_h, .weight = a->weight.data};
        const float rstd = (float)(1 / sqrt(norm_sum(add_square, &row, C).a / (double)C + a->eps));
        if (a->rstd != NULL)
            a->rstd[r] = rstd;
        row.scale = v16_splat(rstd);
        norm_write(ck_row(&a->y, r), C, stream_y, normed, &row);
    }
    if (stream_y || stream_h)
        ck_stream_end();
}

typedef struct {
    const elem *h, *dy, *dh, *next_h, *next_dy, *next_dh;
    elem *dresidual;
    const float *weight;
    float *dweight; /* NULL: not wanted */
    v16 scale, pull;
    bool first;
} backward_row;

CK_TEMPLATE norm_lanes
add_product(const void *of, size_t c, size_t n, norm_lanes sum)
{
    const backward_row *row = of;
    const v16 g = v16_mul(v16_load(row->dy + c, n), v16_load_f32(row->weight + c, n));
    sum.a = v16_fma(g, v16_load(row->h + c, n), sum.a);
    return sum;
}

CK_TEMPLATE v16
gradient(const void *of, size_t c, size_t n)
{
    const backward_row *row = of;
    const v16 h = v16_load(row->h + c, n), dy = v16_load(row->dy + c, n), dh = v16_load(row->dh + c, n);
    const v16 g = v16_mul(dy, v16_load_f32(row->weight + c, n));
    const v16 sum = v16_add(dh, v16_mul(row->scale, v16_fma(h, row->pull, g)));
    norm_fetch(row->next_h + c);
    norm_fetch(row->next_dy + c);
    norm_fetch(row->next_dh + c);
    if (row->dweight != NULL)
        norm_add_to(row->dweight + c, row->first, dy, v16_mul(h, row->scale), n);
    if (row->dresidual != NULL)
        v16_store(row->dresidual + c, sum, n);
    return sum;
}

/* Each block of rows leaves its share of dweight in its row of task.work. */
CK_KERNEL(add_rms_norm_bwd)
{
    const size_t C = a->C;
    const bool stream = norm_streams(&a->dx, &a->dy, 4, a->R, C) && a->dx.data != a->dh.data;

    for (size_t r = task.begin; r < task.end; r++) {
        backward_row row = {.h = ck_row(&a->h, r), .next_h = norm_next(&a->h, r, a->R, C),
                            .dy = ck_row(&a->dy, r), .next_dy = norm_next(&a->dy, r, a->R, C),
                            .dh = ck_row(&a->dh, r), .next_dh = norm_next(&a->dh, r, a->R, C),
                            .weight = a->weight.data, .scale = v16_splat(a->rstd[r]),
                            .first = r % CK_ADD_RMS_NORM_ROWS == 0};
        if (a->dweight.data != NULL)
            row.dweight = (float *)task.work + (r - task.begin) / CK_ADD_RMS_NORM_ROWS * C;
        if (a->dresidual.data != NULL)
            row.dresidual = ck_row(&a->dresidual, r);
        const double rstd = a->rstd[r];
        row.pull = v16_splat((float)(-rstd * rstd * norm_sum(add_product, &row, C).a / (double)C));
        norm_write(ck_row(&a->dx, r), C, stream, gradient, &row);
    }
    if (stream)
        ck_stream_end();
}

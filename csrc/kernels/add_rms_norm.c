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
    const v16 x = v16_load(row->x + c, n), residual = v16_load(row->residual + c, n);
    const v16 twice = CK_FAULT(residual_doubled) ? v16_add(residual, residual) : residual;
    const v16 sum = CK_FAULT(residual_missing) ? x : v16_add(twice, x);
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
        v16_store(row->h + c, CK_FAULT(residual_normed) ? v16_mul(h, row->scale) : h, n);
    return v16_mul(v16_mul(h, row->scale), v16_load_f32(row->weight + c, n));
}

CK_TEMPLATE void
forward_place(void *to, const void *args, const norm_walk *walk, norm_span s)
{
    const struct ck_add_rms_norm_fwd *a = args;
    forward_row *row = to;
    row->x = norm_row(&a->x, s);
    row->next_x = norm_next(&a->x, s, a->R);
    row->residual = norm_row(&a->residual, s);
    row->next_residual = norm_next(&a->residual, s, a->R);
    row->h = norm_row(&a->h, s);
    row->weight = norm_weight(walk, 0, s);
}

CK_TEMPLATE void
forward(const struct ck_add_rms_norm_fwd *a, const norm_walk *walk, norm_way way)
{
    const size_t C = a->C;
    const bool stream_y = norm_streams(&a->y, &a->x, 4, a->R, C) && norm_streams(&a->y, &a->residual, 4, a->R, C);
    const bool stream_h = norm_streams(&a->h, &a->x, 4, a->R, C) && norm_streams(&a->h, &a->residual, 4, a->R, C);
    float rstd[NORM_MOST];
    forward_row row;

    for (size_t i = 0; i < walk->n; i += NORM_GANG(way)) {
        const norm_gang gang = norm_gang_sums(1, add_square, forward_place, &row, a, walk, i, C, way);
        if (norm_measured(&gang, walk, i, C, way))
            continue;
        for (size_t j = 0; j < gang.n; j++)
            rstd[j] = (float)norm_rstd(gang.a[j], C, a->eps);
        for (size_t j = 0; j < gang.n; j++) {
            const norm_span s = norm_span_at(walk, i + j, C, way);
            if (a->rstd != NULL && s.begin == 0)
                a->rstd[s.r] = rstd[j];
            forward_place(&row, a, walk, s);
            row.stream_h = stream_h;
            row.scale = v16_splat(rstd[j]);
            norm_write(norm_row(&a->y, s), s.n, stream_y, normed, &row);
        }
    }
    if (stream_y || stream_h)
        ck_stream_end();
}

CK_KERNEL(add_rms_norm_fwd)
{
    NORM_WALK(forward, task, a->C, a);
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
    const v16 sum = v16_add(CK_FAULT(residual_gradient) ? v16_zero() : dh, v16_mul(row->scale, v16_fma(h, row->pull, g)));
    norm_fetch(row->next_h + c);
    norm_fetch(row->next_dy + c);
    norm_fetch(row->next_dh + c);
    if (row->dweight != NULL)
        norm_add_to(row->dweight + c, row->first, dy, v16_mul(h, row->scale), n);
    if (row->dresidual != NULL)
        v16_store(row->dresidual + c, sum, n);
    return sum;
}

/* Each block of rows leaves its share of dweight. */
CK_TEMPLATE void
backward_place(void *to, const void *args, const norm_walk *walk, norm_span s)
{
    const struct ck_add_rms_norm_bwd *a = args;
    backward_row *row = to;
    row->h = norm_row(&a->h, s);
    row->next_h = norm_next(&a->h, s, a->R);
    row->dy = norm_row(&a->dy, s);
    row->next_dy = norm_next(&a->dy, s, a->R);
    row->dh = norm_row(&a->dh, s);
    row->next_dh = norm_next(&a->dh, s, a->R);
    row->dresidual = a->dresidual.data != NULL ? norm_row(&a->dresidual, s) : NULL;
    row->dweight = norm_part(walk, 0, s, CK_ADD_RMS_NORM_ROWS);
    row->weight = norm_weight(walk, 0, s);
    row->scale = v16_splat(a->rstd[s.r]);
    row->first = s.r % CK_ADD_RMS_NORM_ROWS == 0;
}

CK_TEMPLATE void
backward(const struct ck_add_rms_norm_bwd *a, const norm_walk *walk, norm_way way)
{
    const size_t C = a->C;
    const bool stream = norm_streams(&a->dx, &a->dy, 4, a->R, C) && a->dx.data != a->dh.data;
    backward_row row;

    for (size_t i = 0; i < walk->n; i += NORM_GANG(way)) {
        const norm_gang gang = norm_gang_sums(1, add_product, backward_place, &row, a, walk, i, C, way);
        if (norm_measured(&gang, walk, i, C, way))
            continue;
        for (size_t j = 0; j < gang.n; j++) {
            const norm_span s = norm_span_at(walk, i + j, C, way);
            const double rstd = a->rstd[s.r];
            backward_place(&row, a, walk, s);
            row.pull = v16_splat((float)(-rstd * rstd * gang.a[j] / (double)C));
            norm_write(norm_row(&a->dx, s), s.n, stream, gradient, &row);
        }
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(add_rms_norm_bwd)
{
    NORM_WALK(backward, task, a->C, a);
}

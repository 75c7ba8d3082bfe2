#include "kernels/norm.h"
#include "ops/rms_norm.h"

typedef struct {
    const elem *x, *dy, *next_x, *next_dy; /* dy: in backward */
    const float *weight;
    float *dweight; /* NULL: not wanted */
    v16 offset, scale, pull;
    bool first;
} row_of;

CK_TEMPLATE v16 weights(const row_of *row, size_t c, size_t n) { return v16_add(v16_load_f32(row->weight + c, n), CK_FAULT(norm_offset) ? v16_zero() : row->offset); }

CK_TEMPLATE v16
scaled(const void *of, size_t c, size_t n)
{
    const row_of *row = of;
    norm_fetch(row->next_x + c);
    const v16 y = v16_mul(v16_load(row->x + c, n), row->scale);
    return CK_FAULT(norm_cast_early) ? v16_short(y) : y;
}
CK_TEMPLATE v16 scaled_weighted(const void *of, size_t c, size_t n) { return v16_mul(scaled(of, c, n), weights(of, c, n)); }

CK_TEMPLATE void
forward_row(void *to, const void *args, const norm_walk *walk, norm_span s)
{
    const struct ck_rms_norm_fwd *a = args;
    row_of *row = to;
    row->x = norm_row(&a->x, s);
    row->next_x = norm_next(&a->x, s, a->R);
    row->weight = norm_weight(walk, 0, s);
    row->offset = v16_splat((float)a->offset);
}

CK_TEMPLATE norm_lanes
add_square(const void *of, size_t c, size_t n, norm_lanes sum)
{
    return norm_square(((const row_of *)of)->x, c, n, sum);
}

CK_TEMPLATE void
forward(const struct ck_rms_norm_fwd *a, norm_value *value, const norm_walk *walk, norm_way way)
{
    const size_t C = a->C;
    const bool stream = norm_streams(&a->y, &a->x, 2, a->R, C);
    float rstd[NORM_MOST];
    row_of row;

    for (size_t i = 0; i < walk->n; i += NORM_GANG(way)) {
        const norm_gang gang = norm_gang_sums(1, add_square, forward_row, &row, a, walk, i, C, way);
        if (norm_measured(&gang, walk, i, C, way))
            continue;
        for (size_t j = 0; j < gang.n; j++)
            rstd[j] = (float)norm_rstd(gang.a[j], C, a->eps);
        for (size_t j = 0; j < gang.n; j++) {
            const norm_span s = norm_span_at(walk, i + j, C, way);
            if (a->rstd != NULL && s.begin == 0)
                a->rstd[s.r] = rstd[j];
            forward_row(&row, a, walk, s);
            row.scale = v16_splat(rstd[j]);
            norm_write(norm_row(&a->y, s), s.n, stream, value, &row);
        }
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(rms_norm_fwd)
{
    if (a->weight.data != NULL)
        NORM_WALK(forward, task, a->C, a, scaled_weighted);
    else
        NORM_WALK(forward, task, a->C, a, scaled);
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
    return v16_mul(row->scale, CK_FAULT(norm_jacobian) ? g : v16_fma(x, row->pull, g));
}
CK_TEMPLATE v16 gradient_plain(const void *of, size_t c, size_t n) { return gradient(of, c, n, false); }
CK_TEMPLATE v16 gradient_weighted(const void *of, size_t c, size_t n) { return gradient(of, c, n, true); }

CK_TEMPLATE void
backward_row(void *to, const void *args, const norm_walk *walk, norm_span s)
{
    const struct ck_rms_norm_bwd *a = args;
    row_of *row = to;
    row->x = norm_row(&a->x, s);
    row->next_x = norm_next(&a->x, s, a->R);
    row->dy = norm_row(&a->dy, s);
    row->next_dy = norm_next(&a->dy, s, a->R);
    row->weight = norm_weight(walk, 0, s);
    row->offset = v16_splat((float)a->offset);
    row->dweight = norm_part(walk, 0, s, CK_RMS_NORM_ROWS);
    row->scale = v16_splat(a->rstd[s.r]);
    row->first = s.r % CK_RMS_NORM_ROWS == 0;
}

CK_TEMPLATE void
backward(const struct ck_rms_norm_bwd *a, norm_term *term, norm_value *value, const norm_walk *walk, norm_way way)
{
    const size_t C = a->C;
    const bool stream = norm_streams(&a->dx, &a->dy, 3, a->R, C);
    row_of row;

    for (size_t i = 0; i < walk->n; i += NORM_GANG(way)) {
        const norm_gang gang = norm_gang_sums(1, term, backward_row, &row, a, walk, i, C, way);
        if (norm_measured(&gang, walk, i, C, way))
            continue;
        for (size_t j = 0; j < gang.n; j++) {
            const norm_span s = norm_span_at(walk, i + j, C, way);
            const double rstd = a->rstd[s.r];
            backward_row(&row, a, walk, s);
            row.pull = v16_splat((float)(-rstd * rstd * gang.a[j] / (double)C));
            norm_write(norm_row(&a->dx, s), s.n, stream, value, &row);
        }
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(rms_norm_bwd)
{
    if (a->weight.data != NULL)
        NORM_WALK(backward, task, a->C, a, add_weighted, gradient_weighted);
    else
        NORM_WALK(backward, task, a->C, a, add_plain, gradient_plain);
}

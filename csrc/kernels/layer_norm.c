#include "kernels/norm.h"
#include "ops/layer_norm.h"

typedef struct {
    const elem *x, *next;
    const float *weight, *bias;
    v16 mean, scale, rest; /* rest: what the mean lacks, times scale */
} forward_row;

CK_TEMPLATE norm_lanes
add_x(const void *of, size_t c, size_t n, norm_lanes sum)
{
    sum.a = v16_add(sum.a, v16_load(((const forward_row *)of)->x + c, n));
    return sum;
}

/* x - mean, and 0 behind the n elements that are left */
CK_TEMPLATE v16
distance(const elem *x, v16 mean, size_t n)
{
    const v16 d = v16_sub(v16_load(x, n), mean);
    return n >= 16 ? d : v16_select(v16_first(n), d, v16_zero());
}

CK_TEMPLATE norm_lanes
add_distance(const void *of, size_t c, size_t n, norm_lanes sum)
{
    const forward_row *row = of;
    const v16 d = distance(row->x + c, row->mean, n);
    sum.a = v16_add(sum.a, d);
    sum.b = v16_fma(d, d, sum.b);
    return sum;
}

/* Of the first `before` elements and the n that follow: a their mean, b the sum of squares of their distances from it. */
CK_TEMPLATE norm_sums
both(norm_sums all, size_t before, norm_sums more, size_t n)
{
    if (before == 0)
        return more;
    const double step = more.a - all.a, share = (double)n / (double)(before + n);
    all.a += step * share;
    all.b += more.b + step * step * ((double)before * share);
    return all;
}

/* Those of a piece, block by block while the block is in the cache. */
CK_TEMPLATE norm_sums
moments_of_piece(forward_row row, size_t begin, size_t end)
{
    norm_sums all = {0, 0, 0};
    for (size_t from = begin; from < end; from = norm_block_end(from, end)) {
        const size_t to = norm_block_end(from, end), n = to - from;
        const double inverse = 1 / (double)n;
        const float about = (float)(norm_sum_block(add_x, &row, from, to).a * inverse);
        row.mean = v16_splat(about);
        const norm_sums d = norm_sum_block(add_distance, &row, from, to);
        all = both(all, from - begin, (norm_sums){about + d.a * inverse, d.b - d.a * (d.a * inverse), 0}, n);
    }
    return all;
}

CK_TEMPLATE void
forward_place(void *to, const void *args, const norm_walk *walk, norm_span s)
{
    const struct ck_layer_norm_fwd *a = args;
    forward_row *row = to;
    row->x = norm_row(&a->x, s);
    row->next = norm_next(&a->x, s, a->R);
    row->weight = norm_weight(walk, 0, s);
    row->bias = norm_weight(walk, 1, s);
}

/* Those of a span to be measured; else of the whole row, piece by piece. */
CK_TEMPLATE norm_sums
moments_of(const forward_row *row, norm_span s, size_t C)
{
    norm_sums all = {0, 0, 0};
    const size_t end = s.known != NULL ? C : s.n;
    for (size_t from = 0; from < end; from = norm_piece_end(from, end)) {
        const size_t to = norm_piece_end(from, end);
        all = both(all, from, s.known != NULL ? s.known[from / CK_NORM_PIECE] : moments_of_piece(*row, from, to), to - from);
    }
    return all;
}

/* Those of spans that go together.  By the gang, rows are one block each, and this is moments_of_piece. */
CK_TEMPLATE norm_gang
moments_of_gang(const struct ck_layer_norm_fwd *a, const norm_walk *walk, size_t i, norm_way way)
{
    forward_row row;
    norm_gang gang;
    if (way != NORM_BY_GANG) {
        const norm_span s = norm_span_at(walk, i, a->C, way);
        forward_place(&row, a, walk, s);
        const norm_sums moments = moments_of(&row, s, a->C);
        gang.n = 1, gang.a[0] = moments.a, gang.b[0] = moments.b, gang.c[0] = 0;
        return gang;
    }
    const double inverse = 1 / (double)a->C;
    v16 ds[NORM_MOST], squares[NORM_MOST];
    float about[NORM_MOST];
    gang = norm_gang_sums(1, add_x, forward_place, &row, a, walk, i, a->C, way);
    for (size_t j = 0; j < gang.n; j++)
        about[j] = (float)(gang.a[j] * inverse);
    for (size_t j = 0; j < gang.n; j++) {
        forward_place(&row, a, walk, norm_span_at(walk, i + j, a->C, way));
        row.mean = v16_splat(about[j]);
        const norm_lanes d = norm_lanes_of(add_distance, &row, 0, a->C);
        ds[j] = d.a, squares[j] = d.b;
    }
    norm_fold(gang.a, ds, gang.n);
    norm_fold(gang.b, squares, gang.n);
    for (size_t j = 0; j < gang.n; j++) {
        gang.b[j] -= gang.a[j] * (gang.a[j] * inverse);
        gang.a[j] = about[j] + gang.a[j] * inverse;
    }
    return gang;
}

/* Inlined with `weighted` and `biased` known. */
CK_TEMPLATE v16
result(const forward_row *row, size_t c, size_t n, bool weighted, bool biased)
{
    const v16 shifted = v16_sub(v16_load(row->x + c, n), CK_FAULT(layer_norm_mean) ? v16_zero() : row->mean);
    const v16 normed = v16_fma(shifted, row->scale, row->rest);
    norm_fetch(row->next + c);
    if (weighted && biased)
        return v16_fma(normed, v16_load_f32(row->weight + c, n), v16_load_f32(row->bias + c, n));
    if (weighted)
        return v16_mul(normed, v16_load_f32(row->weight + c, n));
    return biased ? v16_add(normed, v16_load_f32(row->bias + c, n)) : normed;
}
CK_TEMPLATE v16 plain(const void *of, size_t c, size_t n) { return result(of, c, n, false, false); }
CK_TEMPLATE v16 with_weight(const void *of, size_t c, size_t n) { return result(of, c, n, true, false); }
CK_TEMPLATE v16 with_bias(const void *of, size_t c, size_t n) { return result(of, c, n, false, true); }
CK_TEMPLATE v16 with_both(const void *of, size_t c, size_t n) { return result(of, c, n, true, true); }

CK_TEMPLATE void
forward(const struct ck_layer_norm_fwd *a, norm_value *value, const norm_walk *walk, norm_way way)
{
    const size_t C = a->C;
    const bool stream = norm_streams(&a->y, &a->x, 2, a->R, C);
    float mean[NORM_MOST], rstd[NORM_MOST], rest[NORM_MOST];
    forward_row row;

    for (size_t i = 0; i < walk->n; i += NORM_GANG(way)) {
        const norm_gang gang = moments_of_gang(a, walk, i, way);
        if (norm_measured(&gang, walk, i, C, way))
            continue;
        for (size_t j = 0; j < gang.n; j++) {
            const double squares = gang.b[j] < 0 ? 0 : gang.b[j]; /* by a rounding; NaN stays */
            const double scale = norm_rstd(squares, C - (CK_FAULT(norm_unbiased) && C > 1), a->eps);
            mean[j] = (float)gang.a[j];
            rstd[j] = (float)scale;
            rest[j] = (float)((mean[j] - gang.a[j]) * scale);
        }
        for (size_t j = 0; j < gang.n; j++) {
            const norm_span s = norm_span_at(walk, i + j, C, way);
            if (a->mean != NULL && s.begin == 0)
                a->mean[s.r] = mean[j];
            if (a->rstd != NULL && s.begin == 0)
                a->rstd[s.r] = rstd[j];
            forward_place(&row, a, walk, s);
            row.mean = v16_splat(mean[j]);
            row.scale = v16_splat(rstd[j]);
            row.rest = v16_splat(rest[j]);
            norm_write(norm_row(&a->y, s), s.n, stream, value, &row);
        }
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(layer_norm_fwd)
{
    if (a->weight.data != NULL && a->bias.data != NULL)
        NORM_WALK(forward, task, a->C, a, with_both);
    else if (a->weight.data != NULL)
        NORM_WALK(forward, task, a->C, a, with_weight);
    else if (a->bias.data != NULL)
        NORM_WALK(forward, task, a->C, a, with_bias);
    else
        NORM_WALK(forward, task, a->C, a, plain);
}

typedef struct {
    const elem *x, *dy, *next_x, *next_dy;
    const float *weight;
    float *dweight, *dbias; /* NULL: not wanted */
    v16 mean, scale, rest, about, pull;
    bool first;
} backward_row;

CK_TEMPLATE v16
pulled(const backward_row *row, size_t c, size_t n, bool weighted)
{
    const v16 dy = v16_load(row->dy + c, n);
    return weighted ? v16_mul(dy, v16_load_f32(row->weight + c, n)) : dy;
}

/* g, g * distance, and the distances, which tell what the mean lacks */
CK_TEMPLATE norm_lanes
add_products(const backward_row *row, size_t c, size_t n, norm_lanes sum, bool weighted)
{
    const v16 g = pulled(row, c, n, weighted), d = distance(row->x + c, row->mean, n);
    sum.a = v16_add(sum.a, g);
    sum.b = v16_fma(g, d, sum.b);
    sum.c = v16_add(sum.c, d);
    return sum;
}
CK_TEMPLATE norm_lanes add_plain(const void *of, size_t c, size_t n, norm_lanes s) { return add_products(of, c, n, s, false); }
CK_TEMPLATE norm_lanes add_weighted(const void *of, size_t c, size_t n, norm_lanes s) { return add_products(of, c, n, s, true); }

CK_TEMPLATE v16
gradient(const backward_row *row, size_t c, size_t n, bool weighted)
{
    const v16 dy = v16_load(row->dy + c, n), d = v16_sub(v16_load(row->x + c, n), row->mean);
    const v16 g = weighted ? v16_mul(dy, v16_load_f32(row->weight + c, n)) : dy;
    norm_fetch(row->next_x + c);
    norm_fetch(row->next_dy + c);
    if (row->dweight != NULL)
        norm_add_to(row->dweight + c, row->first, dy, v16_fma(d, row->scale, row->rest), n);
    if (row->dbias != NULL)
        norm_add_to(row->dbias + c, row->first, dy, v16_splat(1.0f), n);
    return v16_mul(row->scale, v16_fma(d, row->pull, v16_sub(g, row->about)));
}
CK_TEMPLATE v16 gradient_plain(const void *of, size_t c, size_t n) { return gradient(of, c, n, false); }
CK_TEMPLATE v16 gradient_weighted(const void *of, size_t c, size_t n) { return gradient(of, c, n, true); }

CK_TEMPLATE void
backward_place(void *to, const void *args, const norm_walk *walk, norm_span s)
{
    const struct ck_layer_norm_bwd *a = args;
    backward_row *row = to;
    row->x = norm_row(&a->x, s);
    row->dy = norm_row(&a->dy, s);
    row->weight = norm_weight(walk, 0, s);
    row->next_x = norm_next(&a->x, s, a->R);
    row->next_dy = norm_next(&a->dy, s, a->R);
    row->dweight = norm_part(walk, 0, s, CK_LAYER_NORM_ROWS);
    row->dbias = norm_part(walk, 1, s, CK_LAYER_NORM_ROWS);
    row->first = s.r % CK_LAYER_NORM_ROWS == 0;
    row->mean = v16_splat(a->mean[s.r]);
    row->scale = v16_splat(a->rstd[s.r]);
}

CK_TEMPLATE void
backward(const struct ck_layer_norm_bwd *a, norm_term *term, norm_value *value, const norm_walk *walk, norm_way way)
{
    const size_t C = a->C;
    const bool stream = norm_streams(&a->dx, &a->dy, 3, a->R, C);
    backward_row row;

    for (size_t i = 0; i < walk->n; i += NORM_GANG(way)) {
        const norm_gang gang = norm_gang_sums(3, term, backward_place, &row, a, walk, i, C, way);
        if (norm_measured(&gang, walk, i, C, way))
            continue;
        for (size_t j = 0; j < gang.n; j++) {
            const norm_span s = norm_span_at(walk, i + j, C, way);
            const double rstd = a->rstd[s.r], n = (double)C, lacks = gang.c[j] / n;
            const double pull = rstd * rstd * (gang.b[j] - lacks * gang.a[j]) / n;
            backward_place(&row, a, walk, s);
            row.rest = v16_splat((float)(-lacks * rstd));
            row.about = v16_splat(CK_FAULT(layer_norm_jacobian) ? 0 : (float)(gang.a[j] / n - lacks * pull));
            row.pull = v16_splat((float)-pull);
            norm_write(norm_row(&a->dx, s), s.n, stream, value, &row);
        }
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(layer_norm_bwd)
{
    if (a->weight.data != NULL)
        NORM_WALK(backward, task, a->C, a, add_weighted, gradient_weighted);
    else
        NORM_WALK(backward, task, a->C, a, add_plain, gradient_plain);
}

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

/* Inlined with `weighted` and `biased` known. */
CK_TEMPLATE v16
result(const forward_row *row, size_t c, size_t n, bool weighted, bool biased)
{
    const v16 shifted = v16_sub(v16_load(row->x + c, n), row->mean);
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
forward(const struct ck_layer_norm_fwd *a, norm_value *value, const norm_walk *walk, bool cut)
{
    const size_t C = a->C;
    const bool stream = norm_streams(&a->y, &a->x, 2, a->R, C);

    for (size_t i = 0; i < walk->n; i++) {
        const norm_span s = norm_span_at(walk, i, C, cut);
        forward_row row = {.x = norm_row(&a->x, s), .next = norm_next(&a->x, s, a->R, C),
                           .weight = norm_weight(&a->weight, s), .bias = norm_weight(&a->bias, s)};
        const norm_sums moments = moments_of(&row, s, C);
        if (norm_measured(s, moments))
            continue;
        const double mean = moments.a, squares = moments.b < 0 ? 0 : moments.b; /* by a rounding; NaN stays */
        const double rstd = 1 / sqrt(squares / (double)C + a->eps);
        if (a->mean != NULL && s.begin == 0)
            a->mean[s.r] = (float)mean;
        if (a->rstd != NULL && s.begin == 0)
            a->rstd[s.r] = (float)rstd;
        row.mean = v16_splat((float)mean);
        row.scale = v16_splat((float)rstd);
        row.rest = v16_splat((float)(((float)mean - mean) * rstd));
        norm_write(norm_row(&a->y, s), s.n, stream, value, &row);
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(layer_norm_fwd)
{
    if (a->weight.data != NULL && a->bias.data != NULL)
        NORM_WALK(forward, task, a, with_both);
    else if (a->weight.data != NULL)
        NORM_WALK(forward, task, a, with_weight);
    else if (a->bias.data != NULL)
        NORM_WALK(forward, task, a, with_bias);
    else
        NORM_WALK(forward, task, a, plain);
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
backward(const struct ck_layer_norm_bwd *a, norm_term *term, norm_value *value, const norm_walk *walk, bool cut)
{
    const size_t C = a->C, blocks = a->R / CK_LAYER_NORM_ROWS + (a->R % CK_LAYER_NORM_ROWS != 0);
    const bool stream = norm_streams(&a->dx, &a->dy, 3, a->R, C);

    for (size_t i = 0; i < walk->n; i++) {
        const norm_span s = norm_span_at(walk, i, C, cut);
        float *part = norm_part(walk, s, CK_LAYER_NORM_ROWS, C);
        backward_row row = {.x = norm_row(&a->x, s), .dy = norm_row(&a->dy, s), .weight = norm_weight(&a->weight, s),
                            .next_x = norm_next(&a->x, s, a->R, C), .next_dy = norm_next(&a->dy, s, a->R, C),
                            .dweight = a->dweight.data != NULL ? part : NULL, .first = s.r % CK_LAYER_NORM_ROWS == 0,
                            .mean = v16_splat(a->mean[s.r]), .scale = v16_splat(a->rstd[s.r])};
        if (a->dbias.data != NULL)
            row.dbias = a->dweight.data != NULL ? part + blocks * C : part;

        const norm_sums sum = norm_sum_span(term, &row, s);
        if (norm_measured(s, sum))
            continue;
        const double rstd = a->rstd[s.r], n = (double)C, lacks = sum.c / n;
        const double pull = rstd * rstd * (sum.b - lacks * sum.a) / n;
        row.rest = v16_splat((float)(-lacks * rstd));
        row.about = v16_splat((float)(sum.a / n - lacks * pull));
        row.pull = v16_splat((float)-pull);
        norm_write(norm_row(&a->dx, s), s.n, stream, value, &row);
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(layer_norm_bwd)
{
    if (a->weight.data != NULL)
        NORM_WALK(backward, task, a, add_weighted, gradient_weighted);
    else
        NORM_WALK(backward, task, a, add_plain, gradient_plain);
}

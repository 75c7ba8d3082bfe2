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

/* The mean of a row, and the sum of squares of its distances, block by block while the block is in the cache. */
CK_TEMPLATE double
mean_of(forward_row row, size_t C, double *squares)
{
    double mean = 0, sum = 0;
    for (size_t from = 0; from < C; from += NORM_BLOCK) {
        const size_t to = norm_block_end(from, C);
        const double n = (double)(to - from), inverse = 1 / n;
        const float about = (float)(norm_sum_block(add_x, &row, from, to).a * inverse);
        row.mean = v16_splat(about);
        const norm_sums d = norm_sum_block(add_distance, &row, from, to);
        const double its_mean = about + d.a * inverse, its_squares = d.b - d.a * (d.a * inverse);
        if (from == 0) {
            mean = its_mean;
            sum = its_squares;
            continue;
        }
        const double step = its_mean - mean, share = n / (double)to;
        mean += step * share;
        sum += its_squares + step * step * ((double)from * share);
    }
    *squares = sum < 0 ? 0 : sum; /* by a rounding; NaN stays */
    return mean;
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
forward(const struct ck_layer_norm_fwd *a, ck_task task, norm_value *value)
{
    const size_t C = a->C;
    const bool stream = norm_streams(&a->y, &a->x, 2, a->R, C);

    for (size_t r = task.begin; r < task.end; r++) {
        forward_row row = {.x = ck_row(&a->x, r), .next = norm_next(&a->x, r, a->R, C),
                           .weight = a->weight.data, .bias = a->bias.data};
        double squares;
        const double mean = mean_of(row, C, &squares);
        const double rstd = 1 / sqrt(squares / (double)C + a->eps);
        if (a->mean != NULL)
            a->mean[r] = (float)mean;
        if (a->rstd != NULL)
            a->rstd[r] = (float)rstd;
        row.mean = v16_splat((float)mean);
        row.scale = v16_splat((float)rstd);
        row.rest = v16_splat((float)(((float)mean - mean) * rstd));
        norm_write(ck_row(&a->y, r), C, stream, value, &row);
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(layer_norm_fwd)
{
    if (a->weight.data != NULL && a->bias.data != NULL)
        forward(a, task, with_both);
    else if (a->weight.data != NULL)
        forward(a, task, with_weight);
    else if (a->bias.data != NULL)
        forward(a, task, with_bias);
    else
        forward(a, task, plain);
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
backward(const struct ck_layer_norm_bwd *a, ck_task task, norm_term *term, norm_value *value)
{
    const size_t C = a->C, blocks = a->R / CK_LAYER_NORM_ROWS + (a->R % CK_LAYER_NORM_ROWS != 0);
    const bool stream = norm_streams(&a->dx, &a->dy, 3, a->R, C);

    for (size_t r = task.begin; r < task.end; r++) {
        float *part = task.work != NULL ? (float *)task.work + (r - task.begin) / CK_LAYER_NORM_ROWS * C : NULL;
        backward_row row = {.x = ck_row(&a->x, r), .dy = ck_row(&a->dy, r), .weight = a->weight.data,
                            .next_x = norm_next(&a->x, r, a->R, C), .next_dy = norm_next(&a->dy, r, a->R, C),
                            .dweight = a->dweight.data != NULL ? part : NULL, .first = r % CK_LAYER_NORM_ROWS == 0,
                            .mean = v16_splat(a->mean[r]), .scale = v16_splat(a->rstd[r])};
        if (a->dbias.data != NULL)
            row.dbias = a->dweight.data != NULL ? part + blocks * C : part;

        const norm_sums sum = norm_sum(term, &row, C);
        const double rstd = a->rstd[r], n = (double)C, lacks = sum.c / n;
        const double pull = rstd * rstd * (sum.b - lacks * sum.a) / n;
        row.rest = v16_splat((float)(-lacks * rstd));
        row.about = v16_splat((float)(sum.a / n - lacks * pull));
        row.pull = v16_splat((float)-pull);
        norm_write(ck_row(&a->dx, r), C, stream, value, &row);
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(layer_norm_bwd)
{
    if (a->weight.data != NULL)
        backward(a, task, add_weighted, gradient_weighted);
    else
        backward(a, task, add_plain, gradient_plain);
}

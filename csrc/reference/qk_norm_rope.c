#include "reference/reference.h"
#include "ops/qk_norm_rope.h"

/* The channel that c is paired with, c itself where there is none; its pair's number and whether c is the first. */
static size_t
partner(size_t c, size_t K, int interleaved, size_t *k, int *first)
{
    if (c >= 2 * K)
        return c;
    *k = interleaved ? c / 2 : c % K;
    *first = interleaved ? c % 2 == 0 : c < K;
    if (interleaved)
        return *first ? c + 1 : c - 1;
    return *first ? c + K : c - K;
}

CK_KERNEL(qk_norm_rope_fwd)
{
    const float *weight = a->weight.data;
    for (size_t i = task.begin; i < task.end; i++) { /* i = block of tokens * N + n */
        const size_t n = i % a->N, block = i / a->N;
        for (size_t t = block * CK_ROPE_T; t < (block + 1) * CK_ROPE_T && t < a->T; t++) {
            const size_t p = a->positions.data ? (size_t)ck_position(&a->positions, n / (a->N / a->P), t) : t;
            const float *cos = ck_row(&a->cos, p), *sin = ck_row(&a->sin, p);
            const elem *x = ck_row(&a->x, n * a->T + t);
            elem *y = ck_row(&a->y, n * a->T + t);
            double sum = 0;
            for (size_t c = 0; c < a->D; c++)
                sum += get(&x[c]) * get(&x[c]);
            const double rstd = 1 / sqrt(sum / (double)a->D + a->eps);
            if (a->rstd)
                a->rstd[n * a->T + t] = (float)rstd;
            for (size_t c = 0; c < a->D; c++) {
                size_t k = 0;
                int first = 1;
                const size_t other = partner(c, a->K, a->interleaved, &k, &first);
                if (!first)
                    continue; /* written with its partner */
                const double v = get(&x[c]) * rstd * weight[c], w = get(&x[other]) * rstd * weight[other];
                set(&y[c], other == c ? v : v * cos[k] - w * sin[k]);
                if (other != c)
                    set(&y[other], v * sin[k] + w * cos[k]);
            }
        }
    }
}

/* Channel c of dy, turned back. */
static double
turned(const struct ck_qk_norm_rope_bwd *a, const elem *dy, const float *cos, const float *sin, size_t c)
{
    size_t k = 0;
    int first = 1;
    const size_t other = partner(c, a->K, a->interleaved, &k, &first);
    if (other == c)
        return get(&dy[c]);
    return get(&dy[c]) * cos[k] + (first ? 1 : -1) * get(&dy[other]) * sin[k];
}

/* The row of the table for item n, token t. */
static size_t
table_row(const struct ck_qk_norm_rope_bwd *a, size_t n, size_t t)
{
    return a->positions.data ? (size_t)ck_position(&a->positions, n / (a->N / a->P), t) : t;
}

/* The share of dweight of items begin..end-1. */
static void
share_of_dweight(const struct ck_qk_norm_rope_bwd *a, size_t begin, size_t end, float *dweight)
{
    for (size_t c = 0; c < a->D; c++) {
        double sum = 0;
        for (size_t i = begin; i < end; i++) {
            const size_t n = i % a->N, block = i / a->N;
            for (size_t t = block * CK_ROPE_T; t < (block + 1) * CK_ROPE_T && t < a->T; t++) {
                const size_t p = table_row(a, n, t), r = n * a->T + t;
                const double v = turned(a, ck_row(&a->dy, r), ck_row(&a->cos, p), ck_row(&a->sin, p), c);
                sum += v * get((const elem *)ck_row(&a->x, r) + c) * a->rstd[r];
            }
        }
        dweight[c] = (float)sum;
    }
}

static void
backward_row(const struct ck_qk_norm_rope_bwd *a, size_t n, size_t t, float *dv)
{
    const size_t p = table_row(a, n, t);
    const elem *dy = ck_row(&a->dy, n * a->T + t), *x = ck_row(&a->x, n * a->T + t);
    elem *dx = ck_row(&a->dx, n * a->T + t);
    const double rstd = a->rstd[n * a->T + t];
    const float *weight = a->weight.data;
    double dot = 0;
    for (size_t c = 0; c < a->D; c++) {
        const double v = turned(a, dy, ck_row(&a->cos, p), ck_row(&a->sin, p), c);
        dot += v * weight[c] * get(&x[c]);
        dv[c] = (float)v; /* dx may be dy */
    }
    for (size_t c = 0; c < a->D; c++)
        set(&dx[c], rstd * (dv[c] * (double)weight[c] - get(&x[c]) * rstd * rstd * dot / (double)a->D));
}

CK_KERNEL(qk_norm_rope_bwd)
{
    const size_t each = ck_qk_items(a->T);
    float *dweight = a->dweight.data ? task.work : NULL;
    for (size_t begin = task.begin; dweight && begin < task.end; begin += each, dweight += a->D)
        share_of_dweight(a, begin, begin + each < task.end ? begin + each : task.end, dweight);
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t n = i % a->N, block = i / a->N;
        for (size_t t = block * CK_ROPE_T; t < (block + 1) * CK_ROPE_T && t < a->T; t++)
            backward_row(a, n, t, task.scratch);
    }
}

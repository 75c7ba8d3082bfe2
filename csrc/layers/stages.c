#include "layers/stages.h"

#include "ops/ops.h"
#include "runtime/run.h"

#include <math.h>

enum { ALIGN = 64 };

static size_t
padded(size_t size)
{
    return (size + ALIGN - 1) / ALIGN * ALIGN;
}

ck_status
ck_carve(const ck_buffer *buffers, size_t n, void **block, size_t *size)
{
    *size = 0;
    for (size_t i = 0; i < n; i++)
        if (*buffers[i].at == NULL && buffers[i].size != CK_NO_BUFFER)
            *size += padded(buffers[i].size);
    char *next = *block = ck_take(*size);
    if (next == NULL)
        return CK_NO_MEMORY;
    for (size_t i = 0; i < n; i++)
        if (*buffers[i].at == NULL && buffers[i].size != CK_NO_BUFFER) {
            *buffers[i].at = next;
            next += padded(buffers[i].size);
        }
    return CK_OK;
}

ck_array
ck_heads(const void *data, size_t B, size_t T, size_t H, size_t D, size_t width)
{
    const ptrdiff_t head = (ptrdiff_t)(D * width), token = (ptrdiff_t)H * head, item = (ptrdiff_t)T * token;
    return (ck_array){(void *)data, width, 3, {B, H, T}, {item, head, token}};
}

ck_array
ck_merged(ck_array x)
{
    while (x.n > 1 && (x.size[0] == 1 || x.stride[0] == (ptrdiff_t)x.size[1] * x.stride[1])) {
        x.size[1] *= x.size[0];
        for (size_t i = 0; i + 1 < x.n; i++)
            x.size[i] = x.size[i + 1], x.stride[i] = x.stride[i + 1];
        x.n--;
    }
    return x;
}

static double
dot(const float *x, const float *y, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * y[i];
    return sum;
}

/* The score of a key, capped where there is a cap. */
static double
score_of(const ck_attention_stages *a, const float *q, const float *k)
{
    const double x = a->scale * dot(q, k, a->D);
    return a->softcap > 0 ? a->softcap * tanh(x / a->softcap) : x;
}

/* One row of scores, its probabilities over the keys that the query sees, and their gradients. */
static void
capture_row(const ck_attention_stages *a, size_t b, size_t h, size_t t, double *score, double *slope)
{
    const size_t g = h / (a->H / a->G), row = ((b * a->H + h) * a->T + t) * a->T;
    const size_t first = a->window != 0 && t + 1 > a->window ? t + 1 - a->window : 0;
    const float *q = (const float *)a->q + ((b * a->T + t) * a->H + h) * a->D;
    const float *k = (const float *)a->k + (b * a->T * a->G + g) * a->D, *v = (const float *)a->v;
    double max = a->sinks != NULL ? a->sinks[h] : -INFINITY, sum, mean = 0;

    for (size_t s = 0; s < a->T; s++) {
        score[s] = score_of(a, q, k + s * a->G * a->D);
        if (a->scores != NULL)
            a->scores[row + s] = (float)score[s];
        if (s >= first && s <= t)
            max = fmax(max, score[s]);
    }
    sum = a->sinks != NULL ? exp(a->sinks[h] - max) : 0;
    for (size_t s = 0; s < a->T; s++) {
        score[s] = s >= first && s <= t ? exp(score[s] - max) : 0;
        sum += score[s];
    }
    for (size_t s = 0; s < a->T; s++) {
        score[s] /= sum;
        if (a->probs != NULL)
            a->probs[row + s] = (float)score[s];
    }
    if (a->d_attn == NULL)
        return;
    for (size_t s = 0; s < a->T; s++) {
        slope[s] = dot((const float *)a->d_attn + ((b * a->T + t) * a->H + h) * a->D, v + ((b * a->T + s) * a->G + g) * a->D,
                       a->D);
        mean += score[s] * slope[s];
        if (a->d_probs != NULL)
            a->d_probs[row + s] = (float)slope[s];
    }
    for (size_t s = 0; a->d_scores != NULL && s < a->T; s++)
        a->d_scores[row + s] = (float)(score[s] * (slope[s] - mean));
}

/* A task: rows of [B,H,T]; its thread's scratch holds two of T doubles. */
static void
capture_rows(const void *args, ck_task task)
{
    const ck_attention_stages *a = args;
    double *rows = task.scratch;
    for (size_t i = task.begin; i < task.end; i++)
        capture_row(a, i / a->T / a->H, i / a->T % a->H, i % a->T, rows, rows + a->T);
}

ck_status
ck_capture_attention(const ck_kernels *k, const ck_attention_stages *a)
{
    const size_t q = a->B * a->T * a->H * a->D, kv = a->B * a->T * a->G * a->D;
    ck_attention_stages wide = *a;
    struct { const void **at; size_t size; float *taken; } part[] = {{&wide.q, q, NULL}, {&wide.k, kv, NULL},
                                                                     {&wide.v, kv, NULL}, {&wide.d_attn, q, NULL}};
    ck_status status = CK_OK;

    for (size_t i = 0; k->dtype != CK_F32 && status == CK_OK && i < 4; i++) {
        ck_array narrow = ck_rows(*part[i].at, 1, part[i].size, sizeof(ck_bf16));
        status = ck_widen_weight(k, &narrow, part[i].size, &part[i].taken);
        *part[i].at = narrow.data;
    }
    if (status == CK_OK)
        status = ck_run(&(ck_job){.kernel = capture_rows, .args = &wide, .n = a->B * a->H * a->T,
                                  .grain = ck_grain(a->T * a->D), .scratch_each = 2 * a->T * sizeof(double)});
    for (size_t i = 0; i < 4; i++)
        ck_give(part[i].taken, part[i].size * sizeof(float));
    return status;
}

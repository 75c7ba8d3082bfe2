#include "reference/reference.h"
#include "ops/rope.h"

/* One head of one token, whose pair k turns by the angle at cos[k], sin[k]. */
static void
turn(elem *y, const elem *x, double cos, double sin, size_t k, size_t K, int interleaved)
{
    const size_t lo = interleaved ? 2 * k : k, hi = interleaved ? 2 * k + 1 : k + K;
    const double x_lo = get(&x[lo]), x_hi = get(&x[hi]);
    set(&y[lo], x_lo * cos - x_hi * sin);
    set(&y[hi], x_lo * sin + x_hi * cos);
}

/* Item i of the task is (block, n), n fastest, with i = block * N + n. */
static void
rope(const struct ck_rope_fwd *a, ck_task task, double sign)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t n = i % a->N, block = i / a->N;
        for (size_t t = block * CK_ROPE_T; t < (block + 1) * CK_ROPE_T && t < a->T; t++) {
            const size_t p = a->positions.data ? (size_t)ck_position(&a->positions, n / (a->N / a->P), t) : t;
            const float *cos = ck_row(&a->cos, p), *sin = ck_row(&a->sin, p);
            const elem *x = ck_row(&a->x, n * a->T + t);
            elem *y = ck_row(&a->y, n * a->T + t);
            for (size_t k = 0; k < a->K; k++)
                turn(y, x, cos[k], sign * sin[k], k, a->K, a->interleaved);
            for (size_t c = 2 * a->K; c < a->D; c++)
                y[c] = x[c];
        }
    }
}

CK_KERNEL(rope_fwd)
{
    rope(a, task, +1);
}

CK_KERNEL(rope_bwd)
{
    const struct ck_rope_fwd same = {a->dx, a->dy, a->cos, a->sin, a->positions, a->interleaved,
                                     a->N, a->T, a->D, a->S, a->K, a->P};
    rope(&same, task, -1);
}

static void
mrope(const struct ck_mrope_fwd *a, ck_task task, double sign)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t n = i % a->N, block = i / a->N, item = n / (a->N / a->P);
        for (size_t t = block * CK_ROPE_T; t < (block + 1) * CK_ROPE_T && t < a->T; t++) {
            const elem *x = ck_row(&a->x, n * a->T + t);
            elem *y = ck_row(&a->y, n * a->T + t);
            for (size_t k = 0; k < a->K; k++) {
                const size_t p = (size_t)ck_position(&a->positions, (size_t)a->axes[k] * a->P + item, t);
                const float *cos = ck_row(&a->cos, p), *sin = ck_row(&a->sin, p);
                turn(y, x, cos[k], sign * sin[k], k, a->K, a->interleaved);
            }
            for (size_t c = 2 * a->K; c < a->D; c++)
                y[c] = x[c];
        }
    }
}

CK_KERNEL(mrope_fwd)
{
    mrope(a, task, +1);
}

CK_KERNEL(mrope_bwd)
{
    const struct ck_mrope_fwd same = {a->dx, a->dy, a->cos, a->sin, a->axes, a->positions, a->interleaved,
                                      a->N, a->T, a->D, a->S, a->K, a->A, a->P};
    mrope(&same, task, -1);
}

CK_KERNEL(rope_angles)
{
    for (size_t t = task.begin; t < task.end; t++)
        for (size_t k = 0; k < a->K; k++) {
            const double angle = (double)ck_id(&a->positions, t) * a->frequency[k];
            a->cos[t * a->K + k] = (float)(a->attention * cos(angle));
            a->sin[t * a->K + k] = (float)(a->attention * sin(angle));
        }
}

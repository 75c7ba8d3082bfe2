#include "reference/reference.h"
#include "ops/rope.h"

/* Item i of the task is (block, n), n fastest, with i = block * N + n. */
static void
turn(const struct ck_rope_fwd *a, ck_task task, double sign)
{
    for (size_t i = task.begin; i < task.end; i++) {
        const size_t n = i % a->N, block = i / a->N;
        for (size_t t = block * CK_ROPE_T; t < (block + 1) * CK_ROPE_T && t < a->T; t++) {
            const size_t p = a->positions.data ? (size_t)ck_position(&a->positions, n / (a->N / a->P), t) : t;
            const float *cos = ck_row(&a->cos, p), *sin = ck_row(&a->sin, p);
            const elem *x = ck_row(&a->x, n * a->T + t);
            elem *y = ck_row(&a->y, n * a->T + t);
            for (size_t k = 0; k < a->K; k++) {
                const size_t lo = a->interleaved ? 2 * k : k, hi = a->interleaved ? 2 * k + 1 : k + a->K;
                const double x_lo = get(&x[lo]), x_hi = get(&x[hi]);
                set(&y[lo], x_lo * cos[k] - x_hi * sign * sin[k]);
                set(&y[hi], x_lo * sign * sin[k] + x_hi * cos[k]);
            }
            for (size_t c = 2 * a->K; c < a->D; c++)
                y[c] = x[c];
        }
    }
}

CK_KERNEL(rope_fwd)
{
    turn(a, task, +1);
}

CK_KERNEL(rope_bwd)
{
    const struct ck_rope_fwd same = {a->dx, a->dy, a->cos, a->sin, a->positions, a->interleaved,
                                     a->N, a->T, a->D, a->S, a->K, a->P};
    turn(&same, task, -1);
}

CK_KERNEL(rope_table)
{
    for (size_t t = task.begin; t < task.end; t++)
        for (size_t k = 0; k < a->K; k++) {
            const double frequency = pow(a->base, -2.0 * (double)k / (double)(2 * a->K));
            const double angle = (double)ck_id(&a->positions, t) * frequency;
            a->cos[t * a->K + k] = (float)cos(angle);
            a->sin[t * a->K + k] = (float)sin(angle);
        }
}

#include "kernels/kernel.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/mse_loss.h"
#include "simd/words.h"

/* The sum of n squared differences; lanes behind the end are 0. */
static inline double
sum_block(const elem *x, const elem *t, size_t n)
{
    v16 sums[4] = {v16_zero(), v16_zero(), v16_zero(), v16_zero()};
    size_t c = 0;
    for (; c + 64 <= n; c += 64)
        for (size_t i = 0; i < 4; i++) {
            const v16 d = v16_sub(v16_load(x + c + 16 * i, 16), v16_load(t + c + 16 * i, 16));
            sums[i] = v16_fma(d, d, sums[i]);
        }
    for (; c < n; c += 16) {
        const v16 d = v16_sub(v16_load(x + c, n - c), v16_load(t + c, n - c));
        sums[0] = v16_fma(d, d, sums[0]);
    }
    return v16_sum(v16_add(v16_add(sums[0], sums[1]), v16_add(sums[2], sums[3])));
}

static void
each_loss(const struct ck_mse_loss_fwd *a, ck_task task)
{
    for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
        const elem *x = (const elem *)ck_row(&a->input, s.row) + s.column;
        const elem *t = (const elem *)ck_row(&a->target, s.row) + s.column;
        float *losses = (float *)ck_row(&a->losses, s.row) + s.column;
        CK_WALK(c, w, x, s.n, false, {
            const v16 d = v16_sub(v16_load(x + c, w), v16_load(t + c, w));
            v16_store_f32(losses + c, v16_mul(d, d), w);
        });
    }
}

CK_KERNEL(mse_loss_fwd)
{
    elem x[CK_LOSS_BLOCK], t[CK_LOSS_BLOCK];
    double sum = 0;

    if (a->losses.data != NULL) {
        each_loss(a, task);
        return;
    }
    for (size_t i = task.begin; i < task.end; i += CK_LOSS_BLOCK) {
        const size_t n = task.end - i < CK_LOSS_BLOCK ? task.end - i : CK_LOSS_BLOCK;
        sum += sum_block(ck_block(&a->input, a->C, i, n, x), ck_block(&a->target, a->C, i, n, t), n);
    }
    *(double *)task.work = sum;
}

/* `each`, a constant: dy has a number for each element. */
CK_TEMPLATE void
backward(const struct ck_mse_loss_bwd *a, ck_task task, bool each, bool stream)
{
    const v16 shared = v16_splat((float)((CK_FAULT(mse_halved) ? 1 : 2) * a->dloss / a->divisor)), two = v16_splat(2.0f);

    for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
        const elem *x = (const elem *)ck_row(&a->input, s.row) + s.column;
        const elem *t = (const elem *)ck_row(&a->target, s.row) + s.column;
        elem *dx = (elem *)ck_row(&a->dinput, s.row) + s.column;
        const float *dy = each ? (const float *)ck_row(&a->dy, s.row) + s.column : NULL;
        CK_WALK(c, w, dx, s.n, stream, {
            const v16 d = v16_sub(v16_load(x + c, w), v16_load(t + c, w));
            const v16 g = each ? v16_mul(two, v16_load_f32(dy + c, w)) : shared;
            v16_put(dx + c, v16_mul(g, d), w, stream);
        });
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(mse_loss_bwd)
{
    const void *dx = a->dinput.data;
    const bool in_place = dx == a->input.data || dx == a->target.data || dx == a->dy.data;
    const bool stream = !in_place && ck_streams(3 * a->R * a->C * sizeof(elem));
    if (a->dy.data != NULL)
        stream ? backward(a, task, true, true) : backward(a, task, true, false);
    else
        stream ? backward(a, task, false, true) : backward(a, task, false, false);
}

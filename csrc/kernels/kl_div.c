#include "kernels/kernel.h"
#include "ops/elementwise.h"
#include "ops/kl_div.h"
#include "ops/loss.h"
#include "simd/math.h"
#include "simd/words.h"

/* t log t - t x, or exp(t) (t - x): `log_target` is a constant wherever this is inlined. */
static inline v16
divergence(v16 x, v16 t, bool log_target)
{
    if (log_target)
        return v16_mul(v16_exp(t), v16_sub(t, x));
    const v16 log_t = v16_select(v16_eq(t, v16_zero()), v16_zero(), v16_log(t));
    return v16_fma(t, log_t, v16_neg(v16_mul(t, x)));
}

/* Of n elements; behind the end stand an input of 0 and a target of 0, which is 0, and so is exp(0) (0 - 0). */
static inline double
sum_block(const elem *x, const elem *t, size_t n, bool log_target)
{
    v16 sums[4] = {v16_zero(), v16_zero(), v16_zero(), v16_zero()};
    size_t c = 0;
    for (; c + 64 <= n; c += 64)
        for (size_t i = 0; i < 4; i++) {
            const size_t at = c + 16 * i;
            sums[i] = v16_add(sums[i], divergence(v16_load(x + at, 16), v16_load(t + at, 16), log_target));
        }
    for (; c < n; c += 16)
        sums[0] = v16_add(sums[0], divergence(v16_load(x + c, n - c), v16_load(t + c, n - c), log_target));
    return v16_sum(v16_add(v16_add(sums[0], sums[1]), v16_add(sums[2], sums[3])));
}

static inline void
forward(const struct ck_kl_div_fwd *a, ck_task task, bool log_target)
{
    elem x[CK_LOSS_BLOCK], t[CK_LOSS_BLOCK];
    double sum = 0;

    for (size_t i = task.begin; i < task.end; i += CK_LOSS_BLOCK) {
        const size_t n = task.end - i < CK_LOSS_BLOCK ? task.end - i : CK_LOSS_BLOCK;
        sum += sum_block(ck_block(&a->input, a->C, i, n, x), ck_block(&a->target, a->C, i, n, t), n, log_target);
    }
    *(double *)task.work = sum;
}

static inline void
each_loss(const struct ck_kl_div_fwd *a, ck_task task, bool log_target)
{
    for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
        const elem *x = (const elem *)ck_row(&a->input, s.row) + s.column;
        const elem *t = (const elem *)ck_row(&a->target, s.row) + s.column;
        float *losses = (float *)ck_row(&a->losses, s.row) + s.column;
        CK_WALK(c, w, x, s.n, false, {
            v16_store_f32(losses + c, divergence(v16_load(x + c, w), v16_load(t + c, w), log_target), w);
        });
    }
}

CK_KERNEL(kl_div_fwd)
{
    if (a->losses.data != NULL)
        a->log_target ? each_loss(a, task, true) : each_loss(a, task, false);
    else
        a->log_target ? forward(a, task, true) : forward(a, task, false);
}

/* e^x for a result of the dtype of the call */
CK_TEMPLATE v16 power(v16 x) { return CK_IS_FLOAT ? v16_exp(x) : v16_exp_short(x); }

/* `each`, a constant: dy has a number for each element. */
CK_TEMPLATE void
backward(const struct ck_kl_div_bwd *a, ck_task task, bool log_target, bool each, bool stream)
{
    const v16 shared = v16_splat((float)(-a->dloss / a->divisor));

    for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
        const elem *t = (const elem *)ck_row(&a->target, s.row) + s.column;
        elem *dx = (elem *)ck_row(&a->dinput, s.row) + s.column;
        const float *dy = each ? (const float *)ck_row(&a->dy, s.row) + s.column : NULL;
        CK_WALK(c, w, dx, s.n, stream, {
            const v16 g = each ? v16_neg(v16_load_f32(dy + c, w)) : shared, target = v16_load(t + c, w);
            v16_put(dx + c, v16_mul(g, log_target && !CK_FAULT(kl_log_target) ? power(target) : target), w, stream);
        });
    }
    if (stream)
        ck_stream_end();
}

CK_TEMPLATE void
backward_of(const struct ck_kl_div_bwd *a, ck_task task, bool log_target)
{
    const bool in_place = a->dinput.data == a->target.data || a->dinput.data == a->dy.data;
    const bool stream = !in_place && ck_streams(2 * a->R * a->C * sizeof(elem));
    if (a->dy.data != NULL)
        stream ? backward(a, task, log_target, true, true) : backward(a, task, log_target, true, false);
    else
        stream ? backward(a, task, log_target, false, true) : backward(a, task, log_target, false, false);
}

CK_KERNEL(kl_div_bwd)
{
    a->log_target ? backward_of(a, task, true) : backward_of(a, task, false);
}

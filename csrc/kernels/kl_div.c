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
        for (size_t c = 0; c < s.n; c += 16)
            v16_store_f32(losses + c, divergence(v16_load(x + c, s.n - c), v16_load(t + c, s.n - c), log_target), s.n - c);
    }
}

CK_KERNEL(kl_div_fwd)
{
    if (a->losses.data != NULL)
        a->log_target ? each_loss(a, task, true) : each_loss(a, task, false);
    else
        a->log_target ? forward(a, task, true) : forward(a, task, false);
}

static inline void
backward(const struct ck_kl_div_bwd *a, ck_task task, bool log_target)
{
    const v16 shared = v16_splat((float)(-a->dloss / a->divisor));

    for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
        const elem *t = (const elem *)ck_row(&a->target, s.row) + s.column;
        elem *dx = (elem *)ck_row(&a->dinput, s.row) + s.column;
        const float *dy = a->dy.data == NULL ? NULL : (const float *)ck_row(&a->dy, s.row) + s.column;
        for (size_t c = 0; c < s.n; c += 16) {
            const v16 g = dy == NULL ? shared : v16_neg(v16_load_f32(dy + c, s.n - c));
            const v16 target = v16_load(t + c, s.n - c);
            v16_store(dx + c, v16_mul(g, log_target ? v16_exp(target) : target), s.n - c);
        }
    }
}

CK_KERNEL(kl_div_bwd)
{
    a->log_target ? backward(a, task, true) : backward(a, task, false);
}

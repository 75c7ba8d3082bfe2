#include "kernels/kernel.h"
#include "ops/rope.h"
#include "simd/words.h"

#include <math.h>
#include <string.h>

/* Both turn one head of one token; memory sets the speed, so the products are free. */

static inline void
turn_halves(elem *y, const elem *x, const float *cos, const float *sin, size_t K, v16 sign)
{
    for (size_t k = 0; k < K; k += 16) {
        const size_t n = K - k;
        const v16 c = v16_load_f32(cos + k, n), s = v16_mul(v16_load_f32(sin + k, n), sign);
        const v16 lo = v16_load(x + k, n), hi = v16_load(x + K + k, n);
        v16_store(y + k, v16_fma(hi, v16_neg(s), v16_mul(lo, c)), n);
        v16_store(y + K + k, v16_fma(hi, c, v16_mul(lo, s)), n);
    }
}

static inline void
turn_pairs(elem *y, const elem *x, const float *cos, const float *sin, size_t K, v16 sign)
{
    for (size_t k = 0; k < K; k += 16) {
        const size_t n = K - k, first = 2 * n, second = n > 8 ? 2 * n - 16 : 0; /* elements of the two loads */
        const v16 c = v16_load_f32(cos + k, n), s = v16_mul(v16_load_f32(sin + k, n), sign);
        const v16 a = v16_load(x + 2 * k, first), b = second != 0 ? v16_load(x + 2 * k + 16, second) : v16_zero();
        const v16 lo = v16_evens(a, b), hi = v16_odds(a, b);
        const v16 new_lo = v16_fma(hi, v16_neg(s), v16_mul(lo, c)), new_hi = v16_fma(hi, c, v16_mul(lo, s));
        v16_store(y + 2 * k, v16_zip_lo(new_lo, new_hi), first);
        if (second != 0)
            v16_store(y + 2 * k + 16, v16_zip_hi(new_lo, new_hi), second);
    }
}

static inline void
turn_head(const struct ck_rope_fwd *a, size_t n, size_t t, v16 sign)
{
    const size_t item = a->P > 1 ? n / (a->N / a->P) : 0, K = a->K;
    const size_t p = a->positions.data != NULL ? (size_t)ck_position(&a->positions, item, t) : t;
    const float *cos = ck_row(&a->cos, p), *sin = ck_row(&a->sin, p); /* [p,:] */
    const elem *x = ck_row(&a->x, n * a->T + t);                      /* [n,t,:] */
    elem *y = ck_row(&a->y, n * a->T + t);

    (a->interleaved ? turn_pairs : turn_halves)(y, x, cos, sin, K, sign);
    if (y != x && a->D > 2 * K)
        memcpy(y + 2 * K, x + 2 * K, (a->D - 2 * K) * sizeof *y);
}

/* Whether the heads of a token lie together, [B,T,H,D] seen as [B,H,T,D], rather than the tokens of a head. */
static inline bool
heads_together(const ck_array *x)
{
    return x->n > 1 && x->stride[x->n - 1] > x->stride[x->n - 2];
}

/* One stretch of heads in one block of tokens after the other, each in the order of memory. */
static inline void
turn(const struct ck_rope_fwd *a, ck_task task, float sign)
{
    const bool by_token = heads_together(&a->x);

    for (size_t i = task.begin, heads; i < task.end; i += heads) { /* i = block * N + n */
        const size_t n = i % a->N, t = i / a->N * CK_ROPE_T, tokens = a->T - t < CK_ROPE_T ? a->T - t : CK_ROPE_T;
        heads = a->N - n < task.end - i ? a->N - n : task.end - i;
        for (size_t outer = 0; outer < (by_token ? tokens : heads); outer++)
            for (size_t inner = 0; inner < (by_token ? heads : tokens); inner++)
                turn_head(a, n + (by_token ? inner : outer), t + (by_token ? outer : inner), v16_splat(sign));
    }
}

CK_KERNEL(rope_fwd)
{
    turn(a, task, +1.0f);
}

CK_KERNEL(rope_bwd)
{
    const struct ck_rope_fwd same = {a->dx, a->dy, a->cos, a->sin, a->positions, a->interleaved,
                                     a->N, a->T, a->D, a->S, a->K, a->P};
    turn(&same, task, -1.0f);
}

/* Column by column, because the power costs more than the rest; double from end to end, because a float angle is off
 * by whole turns' worth of bits at position 4096. */
CK_KERNEL(rope_table)
{
    for (size_t k = 0; k < a->K; k++) {
        const double frequency = pow(a->base, -2.0 * (double)k / (double)(2 * a->K));
        for (size_t t = task.begin; t < task.end; t++) {
            const double angle = (double)ck_id(&a->positions, t) * frequency;
            a->cos[t * a->K + k] = (float)cos(angle);
            a->sin[t * a->K + k] = (float)sin(angle);
        }
    }
}

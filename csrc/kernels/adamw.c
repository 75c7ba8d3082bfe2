#include "kernels/kernel.h"
#include "ops/adamw.h"
#include "ops/tensor_list.h"
#include "simd/words.h"

typedef struct {
    v16 scale, keep, blend, old, fresh, eps; /* keep: 1 - lr * weight_decay; blend: of m; old, fresh: of v */
    v16 step, root;                          /* of a tensor */
    bool from_grad;                          /* m begins at the gradient, not at the old average */
} factors;

typedef struct {
    elem *param;
    const void *grad; /* elem, or float where `wide` */
    void *zeroed;
    float *avg, *sq, *peak;
} pointers;

static inline __attribute__((always_inline)) void
update(pointers x, size_t c, size_t n, bool wide, const factors *f)
{
    const v16 whole = v16_load(x.param + c, n), kept = v16_mul(whole, f->keep);
    const v16 given = wide ? v16_load_f32((const float *)x.grad + c, n) : v16_load((const elem *)x.grad + c, n);
    const v16 p = CK_FAULT(adamw_decay_coupled) || CK_FAULT(adamw_decay_after) ? whole : kept;
    const v16 drawn = CK_FAULT(adamw_decay_coupled) ? v16_sub(whole, kept) : v16_zero();
    const v16 g = CK_FAULT(adamw_decay_coupled) ? v16_fma(given, f->scale, drawn) : v16_mul(given, f->scale);
    const v16 before = v16_load_f32(x.avg + c, n);
    const v16 m = v16_fma(f->blend, v16_sub(g, before), f->from_grad ? g : before);
    const v16 v = v16_fma(v16_mul(f->fresh, g), g, v16_mul(f->old, v16_load_f32(x.sq + c, n)));
    v16 u = v;
    if (x.peak != NULL) {
        const v16 peak = v16_load_f32(x.peak + c, n);
        u = v16_select(v16_is_nan(peak), peak, v16_max(peak, v)); /* v16_max takes v where v is NaN */
        v16_store_f32(x.peak + c, u, n);
    }
    const v16 d = CK_FAULT(adamw_eps_inside) ? v16_div(v16_sqrt(v16_add(u, f->eps)), f->root)
                                             : v16_add(v16_div(v16_sqrt(u), f->root), f->eps);
    v16_store_f32(x.avg + c, m, n);
    if (!CK_FAULT(adamw_stale_state))
        v16_store_f32(x.sq + c, v, n);
    const v16 moved = v16_fma(f->step, v16_div(m, d), p);
    v16_store(x.param + c, CK_FAULT(adamw_decay_after) ? v16_mul(moved, f->keep) : moved, n);
    if (x.zeroed != NULL && wide)
        v16_store_f32((float *)x.zeroed + c, v16_zero(), n);
    else if (x.zeroed != NULL)
        v16_store((elem *)x.zeroed + c, v16_zero(), n);
}

static inline __attribute__((always_inline)) void
update_all(pointers x, size_t n, bool wide, const factors *f)
{
    size_t c = 0;
    for (; c + 16 <= n; c += 16)
        update(x, c, 16, wide, f);
    if (c < n)
        update(x, c, n - c, wide, f);
}

/* A loop for what everybody uses, which knows that these are NULL; one for the rest. */
static void
update_piece(pointers x, size_t n, bool wide, const factors *given)
{
    factors f = *given;
    if (CK_IS_FLOAT)
        wide = false;
    if (x.peak == NULL && x.zeroed == NULL && !f.from_grad && !wide) {
        x.peak = NULL, x.zeroed = NULL, f.from_grad = false;
        update_all(x, n, false, &f);
    }
    else if (wide)
        update_all(x, n, true, &f);
    else
        update_all(x, n, false, &f);
}

CK_KERNEL(adamw_step)
{
    const double keep = a->weight_decay != 0 ? 1 - a->lr * a->weight_decay : 1, blend = 1 - a->beta1;
    factors f = {
        .scale = v16_splat((float)(a->maximize ? -a->scale : a->scale)), .keep = v16_splat((float)keep),
        .blend = v16_splat((float)(blend < 0.5 ? (float)blend : (float)blend - 1)), .old = v16_splat((float)a->beta2),
        .fresh = v16_splat((float)(1 - a->beta2)), .eps = v16_splat((float)a->eps), .from_grad = blend >= 0.5,
    };
    for (ck_piece at = ck_first_piece(task, a->start, a->R, a->C); at.n != 0; at = ck_next_piece(at, a->R, a->C)) {
        const pointers x = {.param = ck_piece_of(a->params, at), .grad = ck_piece_of(a->grads, at),
                            .zeroed = ck_piece_of(a->zeroed, at), .avg = ck_piece_of(a->exp_avg, at),
                            .sq = ck_piece_of(a->exp_avg_sq, at), .peak = ck_piece_of(a->max_exp_avg_sq, at)};
        f.step = v16_splat((float)-a->factor[2 * at.tensor]);
        f.root = v16_splat((float)a->factor[2 * at.tensor + 1]);
        update_piece(x, at.n, a->grads[at.tensor].width == sizeof(float), &f);
    }
}

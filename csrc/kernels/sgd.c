#include "kernels/kernel.h"
#include "ops/sgd.h"
#include "ops/tensor_list.h"
#include "simd/words.h"

typedef struct {
    elem *param;
    const void *grad; /* elem, or float where `wide` */
    void *zeroed;
    float *buffer;
} pointers;

/* Numbers as vectors, and what branches: the same for all elements of a call. */
typedef struct {
    v16 scale, decay, momentum, fresh, step;
    bool decays, moves, first, nesterov; /* not by a product with 0: inf would be NaN */
} factors;

static inline __attribute__((always_inline)) void
update(pointers x, size_t c, size_t n, bool wide, const factors *f)
{
    const v16 p = v16_load(x.param + c, n);
    v16 g = v16_mul(wide ? v16_load_f32((const float *)x.grad + c, n) : v16_load((const elem *)x.grad + c, n), f->scale);
    if (f->decays)
        g = v16_fma(p, f->decay, g);
    if (f->moves) {
        const v16 b = f->first ? g : v16_fma(g, f->fresh, v16_mul(v16_load_f32(x.buffer + c, n), f->momentum));
        if (!CK_FAULT(sgd_stale_state))
            v16_store_f32(x.buffer + c, b, n);
        g = f->nesterov ? v16_fma(b, f->momentum, g) : b;
    }
    v16_store(x.param + c, v16_fma(g, f->step, p), n);
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

/* A loop for what everybody uses, one for the rest. */
static void
update_piece(pointers x, size_t n, bool wide, const factors *given)
{
    factors f = *given;
    if (CK_IS_FLOAT)
        wide = false;
    if (x.zeroed == NULL && f.moves && !f.first && !wide) {
        x.zeroed = NULL, f.moves = true, f.first = false;
        update_all(x, n, false, &f);
    }
    else if (wide)
        update_all(x, n, true, &f);
    else
        update_all(x, n, false, &f);
}

CK_KERNEL(sgd_step)
{
    const factors f = {
        .scale = v16_splat((float)(CK_FAULT(clip_after_the_step) ? 1 : a->maximize ? -a->scale : a->scale)), .decay = v16_splat((float)a->weight_decay),
        .momentum = v16_splat((float)a->momentum), .fresh = v16_splat((float)(1 - a->dampening)),
        .step = v16_splat((float)-a->lr), .decays = a->weight_decay != 0 && !CK_FAULT(sgd_no_decay), .moves = a->momentum != 0,
        .first = a->first, .nesterov = a->nesterov,
    };
    for (ck_piece at = ck_first_piece(task, a->start, a->R, a->C); at.n != 0; at = ck_next_piece(at, a->R, a->C)) {
        const pointers x = {.param = ck_piece_of(a->params, at), .grad = ck_piece_of(a->grads, at),
                            .zeroed = ck_piece_of(a->zeroed, at), .buffer = ck_piece_of(a->momentum_buffer, at)};
        update_piece(x, at.n, a->grads[at.tensor].width == sizeof(float), &f);
    }
}

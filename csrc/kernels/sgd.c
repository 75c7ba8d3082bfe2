#include "kernels/kernel.h"
#include "ops/sgd.h"
#include "ops/tensor_list.h"
#include "simd/words.h"

/* Numbers as vectors; what branches is the same for all elements of a call. */
typedef struct {
    v16 scale, decay, momentum, fresh, step;
    bool decays, moves, first, nesterov; /* not by a product with 0: inf would be NaN */
} factors;

static inline __attribute__((always_inline)) void
update(elem *param, const elem *grad, float *buffer, size_t n, const factors *f)
{
    const v16 p = v16_load(param, n);
    v16 g = v16_mul(v16_load(grad, n), f->scale);
    if (f->decays)
        g = v16_fma(p, f->decay, g);
    if (f->moves) {
        const v16 b = f->first ? g : v16_fma(g, f->fresh, v16_mul(v16_load_f32(buffer, n), f->momentum));
        v16_store_f32(buffer, b, n);
        g = f->nesterov ? v16_fma(b, f->momentum, g) : b;
    }
    v16_store(param, v16_fma(g, f->step, p), n);
}

CK_KERNEL(sgd_step)
{
    const factors f = {
        .scale = v16_splat((float)(a->maximize ? -a->scale : a->scale)), .decay = v16_splat((float)a->weight_decay),
        .momentum = v16_splat((float)a->momentum), .fresh = v16_splat((float)(1 - a->dampening)),
        .step = v16_splat((float)-a->lr), .decays = a->weight_decay != 0, .moves = a->momentum != 0,
        .first = a->first, .nesterov = a->nesterov,
    };
    for (ck_piece at = ck_first_piece(task, a->start, a->R, a->C); at.n != 0; at = ck_next_piece(at, a->R, a->C)) {
        elem *param = (elem *)ck_row(&a->params[at.tensor], at.row) + at.column;
        const elem *grad = (const elem *)ck_row(&a->grads[at.tensor], at.row) + at.column;
        float *buffer = f.moves ? (float *)ck_row(&a->momentum_buffer[at.tensor], at.row) + at.column : NULL;
        elem *zeroed = a->zeroed != NULL ? (elem *)ck_row(&a->zeroed[at.tensor], at.row) + at.column : NULL;
        size_t c = 0;
        for (; c + 16 <= at.n; c += 16) {
            update(param + c, grad + c, f.moves ? buffer + c : NULL, 16, &f);
            if (zeroed != NULL)
                v16_store(zeroed + c, v16_zero(), 16);
        }
        if (c < at.n) {
            update(param + c, grad + c, f.moves ? buffer + c : NULL, at.n - c, &f);
            if (zeroed != NULL)
                v16_store(zeroed + c, v16_zero(), at.n - c);
        }
    }
}

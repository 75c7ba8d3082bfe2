#include "kernels/kernel.h"
#include "ops/sgd.h"
#include "ops/elementwise.h"
#include "simd/words.h"

CK_KERNEL(sgd_step)
{
    const v16 scale = v16_splat((float)(a->maximize ? -a->scale : a->scale)), decay = v16_splat((float)a->weight_decay);
    const v16 momentum = v16_splat((float)a->momentum), fresh = v16_splat((float)(1 - a->dampening));
    const v16 step = v16_splat((float)-a->lr);
    const bool decays = a->weight_decay != 0, moves = a->momentum != 0; /* not by a product with 0: inf would be NaN */

    for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
        elem *param = (elem *)ck_row(&a->param, s.row) + s.column;
        const elem *grad = (const elem *)ck_row(&a->grad, s.row) + s.column;
        float *buffer = moves ? (float *)ck_row(&a->buffer, s.row) + s.column : NULL;
        for (size_t c = 0; c < s.n; c += 16) {
            const size_t n = s.n - c;
            const v16 p = v16_load(param + c, n);
            v16 g = v16_mul(v16_load(grad + c, n), scale);
            if (decays)
                g = v16_fma(p, decay, g);
            if (moves) {
                const v16 b = a->first ? g : v16_fma(g, fresh, v16_mul(v16_load_f32(buffer + c, n), momentum));
                v16_store_f32(buffer + c, b, n);
                g = a->nesterov ? v16_fma(b, momentum, g) : b;
            }
            v16_store(param + c, v16_fma(g, step, p), n);
        }
    }
}

/* A plain loop: the compiler knows doubles. */
CK_KERNEL(sum_of_squares)
{
    double *total = task.work;

    *total = 0;
    for (ck_stretch s = ck_first_stretch(task, a->C); s.n != 0; s = ck_next_stretch(s, task, a->C)) {
        const elem *x = (const elem *)ck_row(&a->x, s.row) + s.column;
        double lane[16] = {0};
        for (size_t c = 0; c < s.n; c += 16) {
            float wide[16];
            v16_store_f32(wide, v16_load(x + c, s.n - c), 16);
            for (size_t i = 0; i < 16; i++)
                lane[i] += (double)wide[i] * wide[i];
        }
        for (size_t half = 8; half > 0; half /= 2)
            for (size_t i = 0; i < half; i++)
                lane[i] += lane[i + half];
        *total += lane[0];
    }
}

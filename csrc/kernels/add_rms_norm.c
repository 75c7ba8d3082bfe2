#include "kernels/kernel.h"
#include "ops/add_rms_norm.h"
#include "simd/words.h"

#include <math.h>

CK_KERNEL(add_rms_norm_fwd)
{
    const size_t C = a->C;
    const float *weight = a->weight.data;

    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r), *residual = ck_row(&a->residual, r); /* [r,:] */
        elem *h = ck_row(&a->h, r), *y = ck_row(&a->y, r);

        v16 squares = v16_zero();
        for (size_t c = 0; c < C; c += 16) {
            v16_store(h + c, v16_add(v16_load(residual + c, C - c), v16_load(x + c, C - c)), C - c);
            const v16 hc = v16_load(h + c, C - c); /* as stored: rounded */
            squares = v16_fma(hc, hc, squares);
        }
        const float rstd = (float)(1.0 / sqrt((double)v16_sum(squares) / (double)C + a->eps));
        if (a->rstd != NULL)
            a->rstd[r] = rstd;

        for (size_t c = 0; c < C; c += 16) {
            const v16 scaled = v16_mul(v16_load(h + c, C - c), v16_splat(rstd));
            v16_store(y + c, v16_mul(scaled, v16_load_f32(weight + c, C - c)), C - c);
        }
    }
}

/* One block of rows; its share of dweight goes to task.work, [C]. */
CK_KERNEL(add_rms_norm_bwd)
{
    const size_t C = a->C;
    const float *weight = a->weight.data;
    float *dweight = a->dweight.data != NULL ? task.work : NULL;

    for (size_t r = task.begin; r < task.end; r++) {
        const elem *h = ck_row(&a->h, r), *dy = ck_row(&a->dy, r), *dh = ck_row(&a->dh, r); /* [r,:] */
        elem *dx = ck_row(&a->dx, r), *dresidual = a->dresidual.data != NULL ? ck_row(&a->dresidual, r) : NULL;
        const v16 scale = v16_splat(a->rstd[r]);

        v16 dot = v16_zero();
        for (size_t c = 0; c < C; c += 16) {
            const v16 g = v16_mul(v16_load(dy + c, C - c), v16_load_f32(weight + c, C - c));
            dot = v16_fma(g, v16_load(h + c, C - c), dot);
        }
        const double rstd = a->rstd[r];
        const v16 pull = v16_splat((float)(-rstd * rstd * v16_sum(dot) / (double)C));

        for (size_t c = 0; c < C; c += 16) {
            const v16 hc = v16_load(h + c, C - c), dyc = v16_load(dy + c, C - c), dhc = v16_load(dh + c, C - c);
            const v16 g = v16_mul(dyc, v16_load_f32(weight + c, C - c));
            const v16 sum = v16_add(dhc, v16_mul(scale, v16_fma(hc, pull, g)));
            if (dweight != NULL) {
                const v16 before = r == task.begin ? v16_zero() : v16_load_f32(dweight + c, C - c);
                v16_store_f32(dweight + c, v16_fma(dyc, v16_mul(hc, scale), before), C - c);
            }
            v16_store(dx + c, sum, C - c);
            if (dresidual != NULL)
                v16_store(dresidual + c, sum, C - c);
        }
    }
}

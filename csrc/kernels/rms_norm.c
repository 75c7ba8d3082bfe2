#include "kernels/kernel.h"
#include "ops/rms_norm.h"
#include "simd/words.h"

#include <math.h>

/* offset + weight[c..]; ones where there is no weight */
static inline v16
scales(const float *weight, float offset, size_t c, size_t n)
{
    return weight != NULL ? v16_add(v16_load_f32(weight + c, n), v16_splat(offset)) : v16_splat(1.0f);
}

CK_KERNEL(rms_norm_fwd)
{
    const size_t C = a->C;

    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r); /* [r,:] */
        elem *y = ck_row(&a->y, r);

        v16 squares = v16_zero();
        for (size_t c = 0; c < C; c += 16) {
            const v16 xc = v16_load(x + c, C - c);
            squares = v16_fma(xc, xc, squares);
        }
        const float rstd = (float)(1.0 / sqrt((double)v16_sum(squares) / (double)C + a->eps));
        if (a->rstd != NULL)
            a->rstd[r] = rstd;

        for (size_t c = 0; c < C; c += 16) {
            const v16 scaled = v16_mul(v16_load(x + c, C - c), v16_splat(rstd));
            v16_store(y + c, v16_mul(scaled, scales(a->weight.data, (float)a->offset, c, C - c)), C - c);
        }
    }
}

/* One block of rows; its share of dweight goes to task.work, [C]. */
CK_KERNEL(rms_norm_bwd)
{
    const size_t C = a->C;
    const float offset = (float)a->offset;
    float *dweight = a->dweight.data != NULL ? task.work : NULL;

    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r), *dy = ck_row(&a->dy, r); /* [r,:] */
        elem *dx = ck_row(&a->dx, r);
        const float rstd = a->rstd[r];
        const bool first = r == task.begin;

        v16 dot = v16_zero();
        for (size_t c = 0; c < C; c += 16) {
            const v16 g = v16_mul(v16_load(dy + c, C - c), scales(a->weight.data, offset, c, C - c));
            dot = v16_fma(g, v16_load(x + c, C - c), dot);
        }
        const v16 scale = v16_splat(rstd);
        const v16 pull = v16_splat((float)(-(double)rstd * rstd * v16_sum(dot) / (double)C));

        for (size_t c = 0; c < C; c += 16) {
            const v16 xc = v16_load(x + c, C - c), dyc = v16_load(dy + c, C - c);
            const v16 g = v16_mul(dyc, scales(a->weight.data, offset, c, C - c));
            if (dweight != NULL) {
                const v16 before = first ? v16_zero() : v16_load_f32(dweight + c, C - c);
                v16_store_f32(dweight + c, v16_fma(dyc, v16_mul(xc, scale), before), C - c);
            }
            v16_store(dx + c, v16_mul(scale, v16_fma(xc, pull, g)), C - c); /* what cancels is rounded least so */
        }
    }
}

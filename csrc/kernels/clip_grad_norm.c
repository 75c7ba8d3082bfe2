#include "kernels/kernel.h"
#include "ops/clip_grad_norm.h"
#include "ops/tensor_list.h"
#include "simd/words.h"

#include <string.h>

/*
 * Element e of a tensor is added to lane e % 16, wherever its row begins: strides do not change the sum.  A plain loop:
 * the compiler knows doubles.
 */
static inline __attribute__((always_inline)) void
add_squares(double *lane, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        lane[i] += (double)x[i] * x[i];
}

static inline double
fold(double *lane)
{
    for (size_t half = 8; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

CK_KERNEL(sum_of_squares)
{
    double total = 0, lane[16] = {0};
    size_t tensor = 0;

    for (ck_piece at = ck_first_piece(task, a->start, a->R, a->C); at.n != 0; at = ck_next_piece(at, a->R, a->C)) {
        const elem *x = ck_piece_of(a->grads, at);
        const size_t first = (at.row * a->C[at.tensor] + at.column) % 16;
        float wide[16];
        size_t c = 0;
        if (at.tensor != tensor) {
            total += fold(lane);
            memset(lane, 0, sizeof lane);
            tensor = at.tensor;
        }
        if (first != 0) { /* only a strided tensor has rows that begin there */
            c = at.n < 16 - first ? at.n : 16 - first;
            v16_store_f32(wide, v16_load(x, c), 16);
            add_squares(lane + first, wide, c);
        }
        for (; c + 16 <= at.n; c += 16) {
            v16_store_f32(wide, v16_load(x + c, 16), 16);
            add_squares(lane, wide, 16);
        }
        if (c < at.n) {
            v16_store_f32(wide, v16_load(x + c, at.n - c), 16);
            add_squares(lane, wide, at.n - c - CK_FAULT(clip_tail));
        }
    }
    *(double *)task.work = total + fold(lane);
}

CK_KERNEL(grad_scale)
{
    const v16 scale = v16_splat((float)a->scale);
    for (ck_piece at = ck_first_piece(task, a->start, a->R, a->C); at.n != 0; at = ck_next_piece(at, a->R, a->C)) {
        elem *x = ck_piece_of(a->grads, at);
        size_t c = 0;
        for (; c + 16 <= at.n; c += 16)
            v16_store(x + c, v16_mul(v16_load(x + c, 16), scale), 16);
        if (c < at.n)
            v16_store(x + c, v16_mul(v16_load(x + c, at.n - c), scale), at.n - c);
    }
}

#include "kernels/kernel.h"
#include "ops/sum_rows.h"
#include "simd/words.h"

enum { WIDE = 64 };

/* n numbers of x from place i on, as floats: where they are, or in `wide`. */
static inline const float *
floats(float *wide, const ck_array *x, size_t i, size_t n)
{
    if (x->width == sizeof(float))
        return (const float *)x->data + i;
    for (size_t j = 0; j < n; j += 16)
        v16_store_f32(wide + j, v16_load((const elem *)x->data + i + j, n - j), 16);
    return wide;
}

/* Plain loops: bound by memory, and the compiler knows doubles. */
CK_KERNEL(sum_rows)
{
    float wide[WIDE];

    for (size_t c = task.begin; c < task.end; c += WIDE) {
        const size_t n = task.end - c < WIDE ? task.end - c : WIDE;
        double sum[WIDE] = {0};
        for (size_t r = 0; r < a->R; r++) {
            const float *x = floats(wide, &a->x, r * a->C + c, n);
            for (size_t i = 0; i < n; i++)
                sum[i] += x[i];
        }
        if (a->accumulate) {
            const float *before = floats(wide, &a->sum, c, n);
            for (size_t i = 0; i < n; i++)
                sum[i] = before[i] + sum[i];
        }
        for (size_t i = 0; i < n; i++)
            wide[i] = (float)sum[i];
        for (size_t i = 0; i < n; i += 16)
            if (a->sum.width == sizeof(float))
                v16_store_f32((float *)a->sum.data + c + i, v16_load_f32(wide + i, n - i), n - i);
            else
                v16_store((elem *)a->sum.data + c + i, v16_load_f32(wide + i, n - i), n - i);
    }
}

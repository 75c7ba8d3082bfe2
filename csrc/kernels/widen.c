#include "kernels/kernel.h"
#include "ops/widen.h"
#include "simd/words.h"

CK_KERNEL(widen)
{
    const elem *x = a->x.data;

    for (size_t c = task.begin; c < task.end; c += 16)
        v16_store_f32(a->y + c, v16_load(x + c, task.end - c), task.end - c);
}

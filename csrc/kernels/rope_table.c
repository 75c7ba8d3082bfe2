#include "kernels/kernel.h"
#include "ops/rope.h"

#include <math.h>

/* Double from end to end, because a float angle is off by whole turns' worth of bits at position 4096. */
CK_KERNEL(rope_angles)
{
    for (size_t t = task.begin; t < task.end; t++) {
        const double position = (double)ck_id(&a->positions, t);
        float *cosines = a->cos + t * a->K, *sines = a->sin + t * a->K;
        for (size_t k = 0; k < a->K; k++) {
            const double angle = position * a->frequency[k];
            cosines[k] = (float)(a->attention * cos(angle));
            sines[k] = (float)(a->attention * sin(angle));
        }
    }
}

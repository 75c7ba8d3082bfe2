#include "kernels/kernel.h"
#include "ops/rope.h"

#include <math.h>

/* Double from end to end, because a float angle is off by whole turns' worth of bits at position 4096. */
CK_KERNEL(rope_angles)
{
    for (size_t t = task.begin; t < task.end; t++) {
        const int64_t at = CK_FAULT(rope_frozen) ? 0 : ck_id(&a->positions, t);
        const double position = (double)(at + CK_FAULT(rope_late) - CK_FAULT(rope_early));
        const double by = CK_FAULT(rope_attention_factor) ? 1 : a->attention;
        float *cosines = a->cos + t * a->K, *sines = a->sin + t * a->K;
        for (size_t k = 0; k < a->K; k++) {
            const double exact = position * a->frequency[k];
            const double angle = CK_FAULT(rope_float_angles) ? (float)position * (float)a->frequency[k] : exact;
            cosines[k] = (float)(by * cos(angle));
            sines[k] = (float)(by * sin(angle));
        }
    }
}

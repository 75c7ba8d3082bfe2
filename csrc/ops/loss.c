#include "ops/loss.h"

#include "runtime/run.h"

ck_status
ck_run_loss(ck_kernel *kernel, const void *args, size_t n, size_t grain, double divisor, float *loss)
{
    const size_t blocks = ck_blocks(n, grain);
    double few[64], *parts = blocks <= 64 ? few : ck_take(blocks * sizeof *parts), sum = 0;
    if (parts == NULL)
        return CK_NO_MEMORY;
    const ck_status status = ck_run(&(ck_job){.kernel = kernel, .args = args, .n = n, .grain = grain, .work = parts,
                                              .work_each = sizeof *parts});
    for (size_t i = 0; status == CK_OK && i < blocks; i++)
        sum += parts[i];
    if (status == CK_OK && loss != NULL)
        *loss = (float)(sum / divisor);
    if (parts != few)
        ck_give(parts, blocks * sizeof *parts);
    return status;
}

#ifndef CK_LOSS_H
#define CK_LOSS_H
/*
 * What the losses share: a task leaves a double, the sum of its share, and the loss is their sum in the order of the tasks.
 *
 * mse_loss and kl_div add elements in C order, CK_LOSS_BLOCK at a time, whatever the strides: a kernel asks for each
 * block by ck_block(), which copies those that lie in pieces.
 */
#include "ops/op.h"

#include <string.h>

enum { CK_LOSS_BLOCK = 1024 }; /* the tasks are a multiple of it */

/* Elements i to i+n-1 of [R,C] in C order: where they lie, or gathered in `copy`. */
static inline const void *
ck_block(const ck_array *x, size_t C, size_t i, size_t n, void *copy)
{
    size_t row = i / C, column = i % C, done = 0;
    if (column + n <= C)
        return (const char *)ck_row(x, row) + column * x->width;
    while (done < n) {
        const size_t part = C - column < n - done ? C - column : n - done;
        memcpy((char *)copy + done * x->width, (const char *)ck_row(x, row) + column * x->width, part * x->width);
        done += part, row++, column = 0;
    }
    return copy;
}

/* kernel(args, task) on tasks of `grain` items out of n, and *loss = the sum of what they leave / divisor (no loss: NULL). */
ck_status ck_run_loss(ck_kernel *kernel, const void *args, size_t n, size_t grain, double divisor, float *loss);
#endif

#include "reference/reference.h"
#include "ops/widen.h"

CK_KERNEL(widen)
{
    for (size_t c = task.begin; c < task.end; c++)
        a->y[c] = (float)get((const elem *)a->x.data + c);
}

#include "ops/ops.h"
#include "runtime/run.h"

#include <stdatomic.h>
#include <string.h>

enum { CHECKED = 65536 }; /* ids of a task that checks them */

typedef struct {
    const ck_array *ids;
    size_t V;
    atomic_size_t *bad; /* the first position of one outside the table */
} ids_check;

/* As a kernel, so that millions of ids are shared among threads, and a signal is heard meanwhile. */
static void
check_some(const void *args, ck_task task)
{
    const ids_check *a = args;
    for (size_t r = task.begin; r < task.end; r++) {
        if ((uint64_t)ck_id(a->ids, r) < a->V)
            continue;
        size_t before = atomic_load(a->bad);
        while (r < before && !atomic_compare_exchange_weak(a->bad, &before, r))
            ;
        return;
    }
}

static ck_status
check_ids(const ck_array *ids, size_t R, size_t V)
{
    atomic_size_t bad = SIZE_MAX;
    const ck_status status = ck_tasks(R, CHECKED, check_some, &(ids_check){ids, V, &bad});
    const size_t r = atomic_load(&bad);
    if (status != CK_OK || r == SIZE_MAX)
        return status;
    return ck_refuse(CK_BAD_INDEX, "'ids' holds %lld at position %zu, and 'weight' has rows 0 to %lld",
                     (long long)ck_id(ids, r), r, (long long)V - 1);
}

CK_RUN(embedding_fwd)
{
    const ck_status status = check_ids(&a->ids, a->R, a->V);
    return status != CK_OK ? status : ck_tasks(a->R, ck_grain(a->C), CK_FAST(embedding_fwd), a);
}

/* Stable counting sort. */
static void
sort_rows(const ck_array *ids, size_t R, size_t V, size_t *row, size_t *end)
{
    memset(end, 0, V * sizeof *end);
    for (size_t r = 0; r < R; r++)
        end[ck_id(ids, r)]++;
    for (size_t v = 0, sum = 0; v < V; v++) { /* now where the rows of v begin */
        const size_t count = end[v];
        end[v] = sum;
        sum += count;
    }
    for (size_t r = 0; r < R; r++) /* and where they end */
        row[end[ck_id(ids, r)]++] = r;
}

CK_RUN(embedding_bwd)
{
    ck_status status = check_ids(&a->ids, a->R, a->V);
    if (status != CK_OK || a->C == 0) /* without columns, V may be any number */
        return status;

    const size_t size = (a->R + a->V) * sizeof(size_t);
    size_t *row = ck_take(size), *end = row + a->R;
    if (row == NULL)
        return CK_NO_MEMORY;
    sort_rows(&a->ids, a->R, a->V, row, end);
    ck_embedding_order order = {row, end};
    status = ck_run(&(ck_job){.kernel = CK_FAST(embedding_bwd), .args = a, .n = a->V, .grain = ck_grain(a->C),
                              .work = &order});
    ck_give(row, size);
    return status;
}

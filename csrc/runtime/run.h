#ifndef CK_RUN_H
#define CK_RUN_H
/* What an op needs to cut itself into tasks: a grid that follows from its shape alone, workspace, the pool. */
#include "runtime/arena.h"
#include "runtime/error.h"
#include "runtime/task.h"

/*
 * kernel(args, task) on tasks of `grain` items out of `n`.  Task i finds `work_each` bytes of its own at
 * work + i * work_each; every thread has `scratch_each` bytes.  Any thread may take any task, in any order.
 */
typedef struct {
    ck_kernel *kernel;
    const void *args;
    size_t n, grain;
    void *work;
    size_t work_each;
    size_t scratch_each;
} ck_job;

/* All tasks are done on CK_OK.  CK_NO_MEMORY: none was begun.  CK_INTERRUPTED: some were not. */
ck_status ck_run(const ck_job *job);

static inline ck_status
ck_tasks(size_t n, size_t grain, ck_kernel *kernel, const void *args)
{
    return ck_run(&(ck_job){.kernel = kernel, .args = args, .n = n, .grain = grain});
}

/* Blocks of `grain` that cover n. */
static inline size_t
ck_blocks(size_t n, size_t grain)
{
    return n / grain + (n % grain != 0);
}

/* Elements that make a task worth handing out: some microseconds of work. */
enum { CK_GRAIN = 16384 };

/* Rows of C elements that make such a task; at least one. */
static inline size_t
ck_grain(size_t C)
{
    return C < CK_GRAIN ? CK_GRAIN / (C + 1) + 1 : 1;
}

enum { CK_MAX_THREADS = 64 };

/* Threads an op may use, the caller included: 1 to CK_MAX_THREADS.  An op at work keeps those it began with. */
void ck_set_threads(size_t n);
size_t ck_threads(void);

/*
 * Called by the thread that called the op, between tasks, about ten times a second; true asks to stop.  It may call ops,
 * change the number of threads, or fork: the op is then called off in the child.
 */
void ck_set_poll(bool (*poll)(void));
#endif

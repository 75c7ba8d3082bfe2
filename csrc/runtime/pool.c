#define _GNU_SOURCE
#include "runtime/run.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * The pool.  A job is published by one release store of its number in `posted`; threads claim tasks from `next` and
 * count them off in `left`.  The caller works too, as thread 0.  Workers spin for about 50 us after a job, because the
 * next op of a layer follows at once, then sleep on the same word: a spinning thread without a core stalls everyone.
 *
 * One job at a time: a second thread that calls meanwhile runs its tasks itself.  After fork() the child starts with
 * no workers and makes its own.
 */
enum { SPIN_NS = 50 * 1000, POLL_NS = 100 * 1000 * 1000, CHECK_EVERY = 64 };
#define CLOSED (SIZE_MAX / 2) /* `next` while a job is being written, or when it is called off: nothing to claim */

static struct {
    pthread_mutex_t busy; /* held by the caller of the job in the pool */
    size_t n_workers;
    ck_job job;
    char *scratch; /* one share a thread */
    atomic_size_t n_threads;
    atomic_uintptr_t poll;
    _Alignas(64) atomic_size_t next;   /* task to claim */
    _Alignas(64) atomic_size_t left;   /* tasks not done */
    _Alignas(64) atomic_uint inside;   /* workers that may still look at the job */
    _Alignas(64) atomic_uint posted;   /* number of the latest job */
    atomic_uint asleep;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .n_threads = 1};

static int64_t
now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void
relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void
run_task(const ck_job *job, size_t i, char *scratch)
{
    const size_t begin = i * job->grain, end = job->n - begin < job->grain ? job->n : begin + job->grain;
    char *work = job->work != NULL ? (char *)job->work + i * job->work_each : NULL;
    job->kernel(job->args, (ck_task){begin, end, work, scratch});
}

/* True about ten times a second at most, when the poll function asks to stop. */
static bool
asked_to_stop(int64_t *last)
{
    bool (*const poll)(void) = (bool (*)(void))atomic_load_explicit(&pool.poll, memory_order_relaxed);
    if (poll == NULL)
        return false;
    const int64_t now = now_ns();
    if (now - *last < POLL_NS)
        return false;
    *last = now;
    return poll();
}

static void
claim_as_worker(size_t thread)
{
    for (size_t i; (i = atomic_fetch_add(&pool.next, 1)) < CLOSED;) {
        if (i >= ck_blocks(pool.job.n, pool.job.grain)) /* only now is it sure that the job stands still */
            break;
        run_task(&pool.job, i, pool.scratch != NULL ? pool.scratch + thread * pool.job.scratch_each : NULL);
        atomic_fetch_sub(&pool.left, 1);
    }
}

static void
sleep_until_posted(unsigned seen)
{
    atomic_fetch_add(&pool.asleep, 1);
    syscall(SYS_futex, &pool.posted, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&pool.asleep, 1);
}

static void *
worker(void *number)
{
    const size_t thread = (size_t)number;
    unsigned seen = atomic_load(&pool.posted);
    for (;;) {
        const int64_t start = now_ns();
        for (unsigned turn = 1; atomic_load_explicit(&pool.posted, memory_order_acquire) == seen; turn++) {
            relax();
            if (turn % CHECK_EVERY == 0 && now_ns() - start > SPIN_NS)
                sleep_until_posted(seen);
        }
        atomic_fetch_add(&pool.inside, 1);
        seen = atomic_load(&pool.posted);
        if (thread < atomic_load(&pool.n_threads))
            claim_as_worker(thread);
        atomic_fetch_sub(&pool.inside, 1);
    }
    return NULL;
}

/* In the child of a fork there are no workers, and whoever held the pool is gone. */
static void
after_fork(void)
{
    pthread_mutex_init(&pool.busy, NULL);
    pool.n_workers = 0;
    atomic_store(&pool.inside, 0);
    atomic_store(&pool.asleep, 0);
}

static void
watch_forks(void)
{
    pthread_atfork(NULL, NULL, after_fork);
}

static void
start_workers(size_t n_threads)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    sigset_t all, before;

    if (pool.n_workers + 1 >= n_threads)
        return;
    pthread_once(&once, watch_forks);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited: signals are for the program's own threads */
    for (; pool.n_workers + 1 < n_threads; pool.n_workers++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)(pool.n_workers + 1)) != 0)
            break; /* fewer threads: slower, same bits */
        pthread_detach(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/*
 * Publish the job.  First `next` is closed, then late workers leave: whoever comes in from here on finds nothing to
 * claim until the job is whole.  (In the other order one could slip in between and see half of it.)
 */
static void
post(const ck_job *job, char *scratch)
{
    atomic_store(&pool.next, CLOSED);
    while (atomic_load(&pool.inside) != 0)
        relax();
    pool.job = *job;
    pool.scratch = scratch;
    atomic_store(&pool.left, ck_blocks(job->n, job->grain));
    atomic_store(&pool.next, 0);
    atomic_fetch_add_explicit(&pool.posted, 1, memory_order_seq_cst);
    if (atomic_load(&pool.asleep) != 0)
        syscall(SYS_futex, &pool.posted, FUTEX_WAKE_PRIVATE, CK_MAX_THREADS, NULL, NULL, 0);
}

/* Claim until nothing is left; false when asked to stop, and then nobody claims any more. */
static bool
claim_as_caller(const ck_job *job, size_t blocks, char *scratch, int64_t *last)
{
    for (size_t i; (i = atomic_fetch_add(&pool.next, 1)) < blocks;) {
        run_task(job, i, scratch);
        atomic_fetch_sub(&pool.left, 1);
        if (asked_to_stop(last)) {
            const size_t claimed = atomic_exchange(&pool.next, CLOSED);
            atomic_fetch_sub(&pool.left, claimed < blocks ? blocks - claimed : 0);
            return false;
        }
    }
    return true;
}

static ck_status
run_in_pool(const ck_job *job, size_t blocks, char *scratch, int64_t *last)
{
    start_workers(atomic_load(&pool.n_threads));
    post(job, scratch);
    const bool all = claim_as_caller(job, blocks, scratch, last);
    for (unsigned turn = 1; atomic_load(&pool.left) != 0; turn++)
        if (turn % (CHECK_EVERY * 64) != 0)
            relax();
        else
            sched_yield();
    return all ? CK_OK : CK_INTERRUPTED;
}

static ck_status
run_alone(const ck_job *job, size_t blocks, char *scratch, int64_t *last)
{
    for (size_t i = 0; i < blocks; i++) {
        run_task(job, i, scratch);
        if (blocks > 1 && asked_to_stop(last))
            return CK_INTERRUPTED;
    }
    return CK_OK;
}

ck_status
ck_run(const ck_job *job)
{
    const size_t blocks = ck_blocks(job->n, job->grain);
    const bool share = blocks > 1 && ck_threads() > 1 && pthread_mutex_trylock(&pool.busy) == 0;
    const size_t scratch_size = job->scratch_each * (share ? ck_threads() : 1); /* fixed while the pool is held */
    char *scratch = NULL;
    ck_status status = CK_NO_MEMORY;
    int64_t last = blocks > 1 ? now_ns() : 0;

    if (blocks == 0)
        status = CK_OK;
    else if (scratch_size == 0 || (scratch = ck_take(scratch_size)) != NULL)
        status = (share ? run_in_pool : run_alone)(job, blocks, scratch, &last);
    ck_give(scratch, scratch_size);
    if (share)
        pthread_mutex_unlock(&pool.busy);
    return status;
}

void
ck_set_threads(size_t n)
{
    /* No worker may be reading scratch laid out for another number: wait for the job in the pool. */
    pthread_mutex_lock(&pool.busy);
    atomic_store(&pool.n_threads, n < 1 ? 1 : n > CK_MAX_THREADS ? CK_MAX_THREADS : n);
    pthread_mutex_unlock(&pool.busy);
}

size_t
ck_threads(void)
{
    return atomic_load(&pool.n_threads);
}

void
ck_set_poll(bool (*poll)(void))
{
    atomic_store(&pool.poll, (uintptr_t)poll);
}

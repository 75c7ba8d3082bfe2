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
 * The pool.  A job is published by one release store of its number in `posted`.  Its tasks are dealt out in as many runs
 * of neighbours as there are threads: a thread claims those of its own run one by one, then those that are left of the
 * others', and counts each off in `left`.  So a thread that has no core stalls nobody, and still the same thread mostly
 * meets the same share of an array in one op after the other, in its own cache.  The caller works too, as thread 0.
 * Workers spin for about 50 us after a job, because the next op of a layer follows at once, then sleep on the same
 * word: a spinning thread without a core stalls everyone.
 *
 * One job at a time: a second thread that calls meanwhile runs its tasks itself.  Nobody ever waits for the pool, so a
 * signal's handler may call ops, change the number of threads or fork while an op is at work below it.
 */
#ifndef CK_POLL_NS
#define CK_POLL_NS (100 * 1000 * 1000) /* a test asks more often */
#endif
enum { SPIN_NS = 50 * 1000, CHECK_EVERY = 64, YIELD_EVERY = 4096 };
#define CLOSED (SIZE_MAX / 2) /* a run while a job is being written, or when it is called off: nothing to claim */

typedef struct { _Alignas(64) atomic_size_t next; } ck_run_of_tasks;

static struct {
    atomic_size_t n_threads; /* wanted by the next job */
    atomic_uintptr_t poll;
    atomic_bool busy;        /* a job is in the pool; its caller alone touches what follows */
    size_t n_workers;
    ck_job job;
    size_t team;             /* threads of this job, the caller included */
    char *scratch;           /* one share for each of them */
    ck_run_of_tasks run[CK_MAX_THREADS]; /* the task to claim next, one for each thread */
    _Alignas(64) atomic_size_t left;   /* tasks not done */
    _Alignas(64) atomic_uint inside;   /* workers that may still look at the job */
    _Alignas(64) atomic_uint posted;   /* number of the latest job */
    atomic_uint asleep, forks;
} pool = {.n_threads = 1, .run = {[0 ... CK_MAX_THREADS - 1] = {CLOSED}}};

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

/*
 * True when the poll function asks to stop; it is asked about ten times a second, however many jobs that time holds.
 * If it forked (a signal's handler may), the child stops too: the workers that held its other tasks are not there.
 */
static bool
asked_to_stop(void)
{
    static _Thread_local int64_t last;
    bool (*const poll)(void) = (bool (*)(void))atomic_load_explicit(&pool.poll, memory_order_relaxed);
    if (poll == NULL)
        return false;
    const int64_t now = now_ns();
    if (now - last < CK_POLL_NS)
        return false;
    last = now;
    const unsigned forks = atomic_load(&pool.forks);
    return poll() || atomic_load(&pool.forks) != forks;
}

/* The first task of a run; that of the next run is its end. */
static size_t
run_begin(size_t run, size_t blocks, size_t team)
{
    return blocks / team * run + blocks % team * run / team;
}

/* The next task for a thread, or `blocks` where none is left.  `*run` is where it looks: first its own. */
static size_t
claim(size_t *run, size_t thread, size_t blocks, size_t team)
{
    do {
        const size_t i = atomic_fetch_add(&pool.run[*run].next, 1);
        if (i < run_begin(*run + 1, blocks, team))
            return i;
        *run = (*run + 1) % team;
    } while (*run != thread);
    return blocks;
}

static void
claim_as_worker(size_t thread)
{
    /* An open run shows a whole job, and none will replace it while this thread is `inside`. */
    if (atomic_load(&pool.run[thread].next) >= CLOSED)
        return;
    const size_t blocks = ck_blocks(pool.job.n, pool.job.grain);
    char *scratch = pool.scratch != NULL ? pool.scratch + thread * pool.job.scratch_each : NULL;
    size_t run = thread;
    for (size_t i; (i = claim(&run, thread, blocks, pool.team)) < blocks;) {
        run_task(&pool.job, i, scratch);
        atomic_fetch_sub(&pool.left, 1);
    }
}

static void
close_runs(void)
{
    for (size_t run = 0; run < CK_MAX_THREADS; run++)
        atomic_store(&pool.run[run].next, CLOSED);
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
        claim_as_worker(thread);
        atomic_fetch_sub(&pool.inside, 1);
    }
    return NULL;
}

/* In the child of a fork there are no workers, and whoever held the pool is gone, or is told by asked_to_stop(). */
static void
after_fork(void)
{
    pool.n_workers = 0;
    atomic_store(&pool.busy, false);
    close_runs();
    atomic_store(&pool.left, 0);
    atomic_store(&pool.inside, 0);
    atomic_store(&pool.asleep, 0);
    atomic_fetch_add(&pool.forks, 1);
}

__attribute__((constructor)) static void
watch_forks(void)
{
    pthread_atfork(NULL, NULL, after_fork);
}

static void
start_workers(size_t n_threads)
{
    sigset_t all, before;

    if (pool.n_workers + 1 >= n_threads)
        return;
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

static void
spin(unsigned turn)
{
    if (turn % YIELD_EVERY != 0)
        relax();
    else
        sched_yield();
}

/*
 * Publish the job.  First the runs are closed, then late workers leave: whoever comes in from here on finds nothing to
 * claim until the job is whole.  (In the other order one could slip in between and see half of it.)
 */
static void
post(const ck_job *job, size_t blocks, size_t team, char *scratch)
{
    for (size_t run = 0; run < pool.team; run++)
        atomic_store(&pool.run[run].next, CLOSED);
    for (unsigned turn = 1; atomic_load(&pool.inside) != 0; turn++)
        spin(turn);
    pool.job = *job;
    pool.team = team;
    pool.scratch = scratch;
    atomic_store(&pool.left, blocks);
    for (size_t run = team; run-- > 0;)
        atomic_store(&pool.run[run].next, run_begin(run, blocks, team));
    atomic_fetch_add(&pool.posted, 1);
    if (atomic_load(&pool.asleep) != 0)
        syscall(SYS_futex, &pool.posted, FUTEX_WAKE_PRIVATE, CK_MAX_THREADS, NULL, NULL, 0);
}

/* Whether this is a child since.  Then the pool is no longer that of the job: a handler may have used it anew. */
static bool
forked_since(unsigned forks)
{
    return atomic_load(&pool.forks) != forks;
}

/* Claim until nothing is left; false when asked to stop, and then nobody claims any more. */
static bool
claim_as_caller(const ck_job *job, size_t blocks, size_t team, char *scratch, unsigned forks)
{
    size_t own = 0;
    for (size_t i; (i = claim(&own, 0, blocks, team)) < blocks;) {
        run_task(job, i, scratch);
        atomic_fetch_sub(&pool.left, 1);
        if (!asked_to_stop())
            continue;
        for (size_t run = 0; run < team && !forked_since(forks); run++) {
            const size_t claimed = atomic_exchange(&pool.run[run].next, CLOSED), end = run_begin(run + 1, blocks, team);
            atomic_fetch_sub(&pool.left, claimed < end ? end - claimed : 0);
        }
        return false;
    }
    return true;
}

static ck_status
run_in_pool(const ck_job *job, size_t blocks, size_t team, char *scratch)
{
    const unsigned forks = atomic_load(&pool.forks);
    start_workers(team);
    post(job, blocks, team, scratch);
    const bool all = claim_as_caller(job, blocks, team, scratch, forks);
    for (unsigned turn = 1; !forked_since(forks) && atomic_load(&pool.left) != 0; turn++)
        spin(turn);
    if (!forked_since(forks))
        atomic_store(&pool.busy, false);
    return all ? CK_OK : CK_INTERRUPTED;
}

static ck_status
run_alone(const ck_job *job, size_t blocks, char *scratch)
{
    for (size_t i = 0; i < blocks; i++) {
        run_task(job, i, scratch);
        if (blocks > 1 && asked_to_stop())
            return CK_INTERRUPTED;
    }
    return CK_OK;
}

ck_status
ck_run(const ck_job *job)
{
    const size_t blocks = ck_blocks(job->n, job->grain), n_threads = ck_threads();
    const bool share = blocks > 1 && n_threads > 1 && !atomic_exchange(&pool.busy, true);
    const size_t team = share ? n_threads : 1, scratch_size = job->scratch_each * team;
    char *scratch = NULL;
    ck_status status = CK_NO_MEMORY;

    if (blocks == 0)
        status = CK_OK;
    else if (scratch_size == 0 || (scratch = ck_take(scratch_size)) != NULL)
        status = share ? run_in_pool(job, blocks, team, scratch) : run_alone(job, blocks, scratch);
    else if (share)
        atomic_store(&pool.busy, false);
    ck_give(scratch, scratch_size);
    return status;
}

void
ck_set_threads(size_t n)
{
    atomic_store(&pool.n_threads, n < 1 ? 1 : n > CK_MAX_THREADS ? CK_MAX_THREADS : n);
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

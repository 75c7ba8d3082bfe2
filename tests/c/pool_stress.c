/*
 * pool_stress SECONDS [fork]: several callers on the pool, the number of threads changing all the while, some jobs
 * called off.  Aborts when a task is done twice or not at all, after its job has returned, with another task's
 * workspace, or with scratch that another thread writes meanwhile.  With "fork" the callers fork, and the children run
 * jobs.  Built with the runtime alone, and once more for a thread sanitizer.
 */
#include "runtime/run.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CALLERS = 4, MOST = 512, SCRATCH = 192 };

#define REQUIRE(true_) ((true_) ? (void)0 : (fprintf(stderr, "line %d: %s\n", __LINE__, #true_), abort()))

typedef struct {
    atomic_bool at_work;
    atomic_uchar done[MOST];
    size_t grain;
    int *work;
    unsigned spin;
} toy;

static atomic_bool stop;
static _Thread_local bool call_off;
static atomic_size_t shared_jobs, called_off;
static _Thread_local pthread_t caller;
static atomic_size_t by_others;

static void
toy_kernel(const void *args, ck_task task)
{
    toy *t = (toy *)args;
    char *scratch = task.scratch;
    REQUIRE(atomic_load(&t->at_work));
    REQUIRE(task.work == t->work + task.begin / t->grain);
    memset(scratch, (int)task.begin, SCRATCH);
    for (volatile unsigned i = 0; i < t->spin; i++)
        ;
    for (size_t i = 0; i < SCRATCH; i++)
        REQUIRE(scratch[i] == (char)task.begin);
    for (size_t i = task.begin; i < task.end; i++)
        REQUIRE(atomic_fetch_add(&t->done[i], 1) == 0);
    *(int *)task.work += 1;
    if (!pthread_equal(caller, pthread_self()))
        atomic_fetch_add(&by_others, 1);
}

static bool
poll_now_and_then(void)
{
    return call_off;
}

static unsigned
chance(unsigned *state)
{
    return *state = *state * 1664525u + 1013904223u, *state >> 16;
}

static void
one_job(unsigned *state)
{
    int work[MOST] = {0};
    toy t = {.grain = 1 + chance(state) % 7, .work = work, .spin = chance(state) % 300};
    const size_t n = chance(state) % MOST, before = atomic_load(&by_others);

    call_off = chance(state) % 16 == 0;
    atomic_store(&t.at_work, true);
    const ck_status status = ck_run(&(ck_job){.kernel = toy_kernel, .args = &t, .n = n, .grain = t.grain, .work = work,
                                              .work_each = sizeof *work, .scratch_each = SCRATCH});
    atomic_store(&t.at_work, false);
    REQUIRE(status == CK_OK || (status == CK_INTERRUPTED && call_off));
    for (size_t i = 0; status == CK_OK && i < n; i++)
        REQUIRE(atomic_load(&t.done[i]) == 1 && work[i / t.grain] == 1);
    atomic_fetch_add(&called_off, status == CK_INTERRUPTED);
    atomic_fetch_add(&shared_jobs, atomic_load(&by_others) != before);
}

static void
fork_and_run(unsigned *state)
{
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        alarm(20);
        caller = pthread_self();
        atomic_store(&shared_jobs, 0);
        ck_set_threads(3);
        for (int i = 0; i < 20 || (i < 100000 && atomic_load(&shared_jobs) == 0); i++)
            one_job(state);
        _exit(atomic_load(&shared_jobs) == 0); /* a child has workers too */
    }
    int status;
    REQUIRE(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static bool forking;

static void *
call(void *seed)
{
    unsigned state = (unsigned)(size_t)seed;
    caller = pthread_self();
    for (unsigned i = 1; !atomic_load(&stop); i++) {
        one_job(&state);
        if (forking && i % 64 == 0)
            fork_and_run(&state);
    }
    return NULL;
}

int
main(int count, char **given)
{
    pthread_t threads[CALLERS];
    const double seconds = count > 1 ? atof(given[1]) : 1;
    const time_t milliseconds = (time_t)(seconds * 1000);
    forking = count > 2 && strcmp(given[2], "fork") == 0;

    ck_set_poll(poll_now_and_then);
    ck_set_threads(3);
    for (size_t i = 0; i < CALLERS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, call, (void *)(i + 1)) == 0);
    for (time_t i = 0; i < milliseconds; i++) {
        ck_set_threads(1 + (size_t)i % 5);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    atomic_store(&stop, true);
    for (size_t i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    REQUIRE(atomic_load(&shared_jobs) > 0 && atomic_load(&called_off) > 0);
    REQUIRE(ck_arena_read().in_use == 0);
    printf("ok: %zu jobs shared, %zu called off\n", atomic_load(&shared_jobs), atomic_load(&called_off));
    return 0;
}

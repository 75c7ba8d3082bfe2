#define _GNU_SOURCE
#include "runtime/arena.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { MAX_CACHED = 256 };
#define PAGE ((size_t)2 << 20)

typedef struct {
    void *block;
    size_t size; /* as rounded() */
} cached_block;

static struct {
    pthread_mutex_t lock;
    cached_block cached[MAX_CACHED]; /* oldest first */
    size_t n_cached, fail_at;
    ck_arena_stats stats;
} arena = {.lock = PTHREAD_MUTEX_INITIALIZER, .stats.limit = (size_t)2 << 30};

/* fork() in one thread while another is in here must not leave the child a lock that nobody will open. */
static void lock(void) { pthread_mutex_lock(&arena.lock); }
static void unlock(void) { pthread_mutex_unlock(&arena.lock); }

__attribute__((constructor)) static void
watch_forks(void)
{
    pthread_atfork(lock, unlock, unlock);
}

/* Sizes come in classes, at most an eighth apart, so that what one call gave back fits the next. */
static size_t
rounded(size_t size)
{
    size_t step = PAGE;
    while (step * 16 <= size)
        step *= 2;
    return (size + step - 1) / step * step;
}

/* Fresh pages: `size` is a multiple of PAGE, and so is the address. */
static void *
map_block(size_t size)
{
    char *at = mmap(NULL, size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    const size_t skip = (PAGE - (size_t)at % PAGE) % PAGE;
    if (skip != 0)
        munmap(at, skip);
    if (skip != PAGE)
        munmap(at + skip + size, PAGE - skip);
    madvise(at + skip, size, MADV_HUGEPAGE);
    return at + skip;
}

static void
forget(size_t i) /* take cached block i off the list */
{
    arena.stats.cached -= arena.cached[i].size;
    arena.n_cached--;
    for (; i < arena.n_cached; i++)
        arena.cached[i] = arena.cached[i + 1];
}

/* Unmap the oldest cached blocks until at most `bytes` are cached and there is room for one more. */
static void
shrink_to(size_t bytes)
{
    while (arena.n_cached > 0 && (arena.stats.cached > bytes || arena.n_cached == MAX_CACHED)) {
        munmap(arena.cached[0].block, arena.cached[0].size);
        forget(0);
    }
}

/* A cached block of this size, the latest given back: it is the warmest. */
static void *
reuse(size_t size)
{
    for (size_t i = arena.n_cached; i-- > 0;)
        if (arena.cached[i].size == size) {
            void *block = arena.cached[i].block;
            forget(i);
            arena.stats.reuses++;
            return block;
        }
    return NULL;
}

static void
count(size_t size)
{
    arena.stats.in_use += size;
    if (arena.stats.in_use + arena.stats.cached > arena.stats.peak)
        arena.stats.peak = arena.stats.in_use + arena.stats.cached;
}

static void *
take_large(size_t size)
{
    size = rounded(size);
    arena.stats.takes++;
    void *block = reuse(size);
    if (block == NULL)
        block = map_block(size);
    if (block == NULL) { /* what is cached may be what is missing */
        shrink_to(0);
        block = map_block(size);
    }
    if (block != NULL)
        count(size);
    return block;
}

void *
ck_take(size_t size)
{
    void *block = NULL;
    if (size > (size_t)PTRDIFF_MAX - 2 * PAGE)
        return NULL;
    lock();
    const bool fail = arena.fail_at != 0 && --arena.fail_at == 0;
    if (!fail && size >= CK_ARENA_LARGE)
        block = take_large(size);
    else if (!fail && posix_memalign(&block, 64, size != 0 ? size : 64) != 0)
        block = NULL;
    else if (!fail)
        count(size);
    unlock();
#ifdef CK_FAULTS /* what is never written shows: NaN in every dtype */
    if (block != NULL)
        memset(block, 0xff, size);
#endif
    return block;
}

void
ck_give(void *block, size_t size)
{
    if (block == NULL)
        return;
    lock();
    if (size < CK_ARENA_LARGE) {
        arena.stats.in_use -= size;
        free(block);
    }
    else {
        size = rounded(size);
        arena.stats.in_use -= size;
        shrink_to(arena.stats.limit > size ? arena.stats.limit - size : 0);
        if (size > arena.stats.limit)
            munmap(block, size);
        else {
            arena.cached[arena.n_cached++] = (cached_block){block, size};
            arena.stats.cached += size;
        }
    }
    unlock();
}

ck_arena_stats
ck_arena_read(void)
{
    lock();
    const ck_arena_stats stats = arena.stats;
    unlock();
    return stats;
}

void
ck_arena_empty(void)
{
    lock();
    shrink_to(0);
    arena.stats.peak = arena.stats.in_use;
    unlock();
}

void
ck_arena_set_limit(size_t bytes)
{
    lock();
    arena.stats.limit = bytes;
    shrink_to(bytes);
    unlock();
}

void
ck_arena_fail_at(size_t n)
{
    lock();
    arena.fail_at = n;
    unlock();
}

#include "runtime/cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

enum { LEAST = 128 << 10, USUAL = 512 << 10, MOST = 4 << 20 };

static size_t l2;

/* glibc asks CPUID; other systems may not know the name, or answer 0. */
static void
look(void)
{
    const char *wish = getenv("CK_L2");
    long found = wish != NULL ? atol(wish) : 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    if (found <= 0)
        found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    l2 = found <= 0 ? USUAL : found < LEAST ? LEAST : found > MOST ? MOST : (size_t)found;
}

size_t
ck_cache_l2(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, look);
    return l2;
}

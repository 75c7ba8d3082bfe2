#define _GNU_SOURCE
#include "runtime/blas.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    pthread_mutex_t lock;
    bool tried;
    char path[CK_BLAS_TEXT];
    ck_blas_info info;
    ck_sgemm *sgemm;
    _Atomic(ck_sgemm *) chosen;
} blas = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* A function by the name that scipy-openblas gives it, or by the plain one. */
static void *
find(void *library, const char *name)
{
    char prefixed[64];
    snprintf(prefixed, sizeof prefixed, "scipy_%s", name);
    void *found = dlsym(library, prefixed);
    return found != NULL ? found : dlsym(library, name);
}

static const char *
ask(void *library, const char *name)
{
    char *(*const question)(void) = (char *(*)(void))(uintptr_t)find(library, name);
    return question != NULL ? question() : "unknown";
}

static void
open_library(const char *path)
{
    char *const lacking = blas.info.lacking;
    char absolute[PATH_MAX];

    snprintf(blas.info.path, CK_BLAS_TEXT, "%s", path);
    if (path[0] == '\0') {
        snprintf(lacking, CK_BLAS_TEXT, "no path to it is set");
        return;
    }
    if (realpath(path, absolute) == NULL) {
        snprintf(lacking, CK_BLAS_TEXT, "there is no file %.400s", path);
        return;
    }
    void *library = dlopen(absolute, RTLD_LOCAL | RTLD_DEEPBIND | RTLD_NOW);
    if (library == NULL) {
        snprintf(lacking, CK_BLAS_TEXT, "%s", dlerror());
        return;
    }
    ck_sgemm *sgemm = (ck_sgemm *)(uintptr_t)find(library, "cblas_sgemm");
    void (*set_threads)(int) = (void (*)(int))(uintptr_t)find(library, "openblas_set_num_threads");
    if (sgemm == NULL || set_threads == NULL) {
        snprintf(lacking, CK_BLAS_TEXT, "%.400s has no %s", path, sgemm == NULL ? "cblas_sgemm" : "openblas_set_num_threads");
        dlclose(library);
        return;
    }
    set_threads(1);
    blas.info.config = ask(library, "openblas_get_config");
    blas.info.core = ask(library, "openblas_get_corename");
    blas.sgemm = sgemm;
}

void
ck_set_blas_path(const char *path)
{
    pthread_mutex_lock(&blas.lock);
    snprintf(blas.path, sizeof blas.path, "%s", path);
    pthread_mutex_unlock(&blas.lock);
}

ck_blas_info
ck_blas_open(void)
{
    pthread_mutex_lock(&blas.lock);
    if (!blas.tried) {
        const char *instead = getenv("CK_BLAS_LIB");
        open_library(instead != NULL ? instead : blas.path);
        blas.tried = true;
    }
    const ck_blas_info info = blas.info;
    pthread_mutex_unlock(&blas.lock);
    return info;
}

bool
ck_blas_choose(bool openblas)
{
    if (openblas && ck_blas_open().lacking[0] != '\0')
        return false;
    atomic_store(&blas.chosen, openblas ? blas.sgemm : NULL);
    return true;
}

ck_sgemm *
ck_blas_chosen(void)
{
    return atomic_load_explicit(&blas.chosen, memory_order_relaxed);
}

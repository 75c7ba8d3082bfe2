#ifndef CK_ARENA_H
#define CK_ARENA_H
/*
 * Where outputs and workspaces live.  Blocks of CK_ARENA_LARGE bytes and more come 2 MiB-aligned with huge pages
 * advised and, once given back, are kept for the next request of about that size, because the page faults of fresh
 * memory cost more than most memory-bound ops.  Smaller blocks are 64-byte aligned and go back at once.
 */
#include "runtime/task.h"

enum { CK_ARENA_LARGE = 1 << 20 };

/* Not cleared; NULL when there is no memory.  ck_give(NULL, 0) does nothing; `size` is that of the request. */
void *ck_take(size_t size);
void ck_give(void *block, size_t size);

typedef struct {
    size_t in_use, cached, peak, limit; /* bytes; peak is of in_use + cached */
    size_t takes, reuses;               /* of large blocks */
} ck_arena_stats;
ck_arena_stats ck_arena_read(void);

void ck_arena_empty(void);              /* give what is cached back to the system; the peak counts from here */
void ck_arena_set_limit(size_t bytes);  /* cached blocks above it go back at once */

/* For tests: the n-th ck_take from now fails, once; 0 never. */
void ck_arena_fail_at(size_t n);
#endif

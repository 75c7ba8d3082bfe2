#ifndef CK_CACHE_H
#define CK_CACHE_H
#include <stddef.h>

/* Bytes of a core's L2, as the system or the CPU says; 512 KiB where neither does.  CK_L2=<bytes> says otherwise. */
size_t ck_cache_l2(void);
#endif

#define _GNU_SOURCE
#include "runtime/amx.h"

#include <stddef.h>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };           /* CPUID leaf 7, EDX */
enum { OSXSAVE = 1 << 27 };                                /* CPUID leaf 1, ECX */
enum { TILE_CONFIGURATION = 1 << 17, TILE_DATA = 1 << 18 }; /* XCR0 */
enum { ASK_FOR_STATE = 0x1023, TILE_DATA_STATE = 18 };     /* arch_prctl's ARCH_REQ_XCOMP_PERM */

const char *
ck_lacks_amx(void)
{
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & OSXSAVE) == 0)
        return "AMX (no XSAVE)";
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & AMX_TILE) == 0)
        return "AMX-TILE";
    if ((d & AMX_BF16) == 0)
        return "AMX-BF16";
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((~low & (TILE_CONFIGURATION | TILE_DATA)) != 0)
        return "AMX registers saved by the system";
    if (syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA_STATE) != 0)
        return "the system's permission to use AMX";
    return NULL;
}
#else
const char *
ck_lacks_amx(void)
{
    return "AMX";
}
#endif

#ifndef CK_RUNTIME_AMX_H
#define CK_RUNTIME_AMX_H
/*
 * Why this process cannot use AMX, or NULL: by CPUID, by what the system saves of the registers, and by the system's
 * permission, which is asked for.  It holds for every thread, and for children of fork().
 */
const char *ck_lacks_amx(void);
#endif

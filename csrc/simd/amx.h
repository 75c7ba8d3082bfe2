#ifndef CK_AMX_H
#define CK_AMX_H
/*
 * The words of matrix.h by AMX.  Assembly of our own: gcc 12 takes stores to the configuration for dead before its
 * intrinsic, since that names the first byte alone.  Here the operand is the whole of it, and memory is clobbered.
 */
static inline void
ck_matrix_configure(const ck_matrix_shape *shape)
{
    __asm__ volatile("ldtilecfg %0" : : "m"(*shape) : "memory");
}

static inline void
ck_matrix_end(void)
{
    __asm__ volatile("tilerelease" : : : "memory");
}

#define CK_MATRIX_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : : : "memory")
#define CK_MATRIX_LOAD(t, p, step) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"((const void *)(p)), "r"((size_t)(step)) : "memory")
#define CK_MATRIX_STORE(t, p, step) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"((void *)(p)), "r"((size_t)(step)) : "memory")
#define CK_MATRIX_DOT_BF16(c, a, b) \
    __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")
#endif

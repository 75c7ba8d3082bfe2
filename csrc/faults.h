#ifndef CK_FAULTS_H
#define CK_FAULTS_H
/*
 * Faults planted on purpose, to see which comparison notices: `ck mutate`.  The list is faults.def; a fault is a word of an
 * expression,
 *
 *     const size_t to = p + 1 + CK_FAULT(attention_causal_late);
 *
 * In the library that users get it is the constant 0: the compiler leaves nothing of it.  In the build with CK_FAULTS it
 * is 1 while that fault is planted, and notes that it was asked; what that build takes from the arena is NaN at first.
 */
#ifdef CK_FAULTS
#include <stddef.h>

#define CK_PLANT(name, what) CK_FAULT_##name,
enum { CK_FAULT_NONE,
#include "faults.def"
       CK_FAULT_COUNT };

typedef struct { const char *name, *what; } ck_fault_row;
extern const ck_fault_row ck_fault_rows[CK_FAULT_COUNT]; /* the first is none */
extern int ck_fault_planted, ck_fault_asked[CK_FAULT_COUNT];

static inline int
ck_fault_is(int fault)
{
    ck_fault_asked[fault] = 1;
    return ck_fault_planted == fault;
}
#define CK_FAULT(name) ck_fault_is(CK_FAULT_##name)
#else
#define CK_FAULT(name) 0
#endif
#endif

#ifndef CK_ERROR_H
#define CK_ERROR_H
#include "runtime/task.h"

/*
 * How an op says no: `return ck_refuse(CK_BAD_INDEX, "'ids' holds %lld", id);`.  The text belongs to the calling
 * thread until its next refusal.  An op refuses before it writes anything.
 */
ck_status ck_refuse(ck_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The text of the calling thread's latest refusal. */
const char *ck_error_text(void);
#endif

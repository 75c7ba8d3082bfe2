#ifndef CK_TEST_WORDS_H
#define CK_TEST_WORDS_H
/*
 * Every word as a function of whole arrays: out[i] = word(x[i], y[i], z[i]) for i < n, at any n.  words.c is compiled
 * once per instruction set, with -DCK_ISA=<name>, and gives the table words_<name>, which ends with a NULL name.
 */
#include <stddef.h>

typedef struct {
    const char *name;
    void (*run)(const float *x, const float *y, const float *z, float *out, size_t n);
} word;

__attribute__((visibility("default"))) extern const word words_avx512[], words_avx2[], words_baseline[], words_portable[];
#endif

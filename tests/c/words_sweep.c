/*
 * words_sweep FIRST LAST STEP NAME...: the functions of simd/math.h, and silu and gelu, at the floats whose bits are FIRST,
 * FIRST + STEP, ... up to LAST, against libm in double.  A NAME is an instruction set or a function; without functions it
 * tries all.  Prints a line for each: function, set, largest error in ulp, where; and the number of results that differ
 * between avx512 and avx2, and between baseline and portable, which must be none.
 *
 *     words_sweep 0 0xffffffff 1 avx512 avx2 baseline exp     tries every float
 */
#include "words.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 4096 };

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double silu(double x) { return x / (1 + exp(-x)); }
static double gelu(double x) { return 0.5 * x * erfc(-x * 0.70710678118654752440); }
static double gelu_tanh(double x) { return x * sigmoid(sqrt(8 / acos(-1)) * (x + 0.044715 * x * x * x)); }
static double gelu_sigmoid(double x) { return x * sigmoid(1.702 * x); }
static double sigmoid_slope(double x) { return sigmoid(x) * sigmoid(-x); }
static double tanh_slope(double x) { return 4 * sigmoid_slope(2 * x); }

static struct {
    const char *name;
    double (*exact)(double);
    bool shortened; /* judged where the result is a float16 */
    bool wanted;
} functions[] = {{"exp", exp, false, false}, {"log", log, false, false}, {"sigmoid", sigmoid, false, false},
                 {"tanh", tanh, false, false}, {"erf", erf, false, false}, {"silu", silu, false, false},
                 {"gelu", gelu, false, false}, {"exp_short", exp, true, false}, {"sigmoid_short", sigmoid, true, false},
                 {"tanh_short", tanh, true, false}, {"silu_short", silu, true, false}, {"gelu_short", gelu, true, false},
                 {"gelu_tanh_short", gelu_tanh, true, false}, {"gelu_sigmoid_short", gelu_sigmoid, true, false},
                 {"sigmoid_slope_short", sigmoid_slope, true, false}, {"tanh_slope_short", tanh_slope, true, false}};
enum { FUNCTIONS = sizeof functions / sizeof *functions };

static struct set {
    const char *name;
    const word *words;
    bool wanted;
    double worst[FUNCTIONS];
    float at[FUNCTIONS];
    float out[BLOCK];
} sets[] = {{.name = "avx512", .words = words_avx512}, {.name = "avx2", .words = words_avx2},
            {.name = "baseline", .words = words_baseline}, {.name = "portable", .words = words_portable}};
enum { SETS = sizeof sets / sizeof *sets };

/* Beyond the largest float there is infinity: one step further, for the count of ulps. */
static double
held(double x)
{
    return fmin(fmax(x, -0x1p128), 0x1p128);
}

static double
ulps(float got, double exact)
{
    if (isnan(got) || isnan(exact))
        return isnan(got) && isnan(exact) ? 0 : INFINITY;
    const double most = held(exact);
    uint64_t bits;
    memcpy(&bits, &most, sizeof bits);
    int e = (int)(bits >> 52 & 0x7ff) - 1023; /* subnormal floats have the ulp of the least normal ones, */
    e = e < -126 ? -126 : e > 127 ? 127 : e;  /* and beyond the largest it stays what it is */
    bits = (uint64_t)(1023 + 23 - e) << 52;
    double per_ulp;
    memcpy(&per_ulp, &bits, sizeof per_ulp);
    return fabs(held(got) - most) * per_ulp;
}

static size_t
differences(const float *x, const float *y, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += memcmp(&x[i], &y[i], sizeof *x) != 0 && !(isnan(x[i]) && isnan(y[i]));
    return count;
}

static void
run(const struct set *set, const char *name, const float *x, float *out, size_t n)
{
    const word *w = set->words;
    while (strcmp(w->name, name) != 0)
        w++;
    w->run(x, x, x, out, n);
}

static size_t
try_block(const float *x, size_t n)
{
    static double exact[BLOCK];
    size_t differ = 0;
    for (size_t f = 0; f < FUNCTIONS; f++) {
        if (!functions[f].wanted)
            continue;
        for (size_t i = 0; i < n; i++)
            exact[i] = functions[f].exact(x[i]);
        for (struct set *s = sets; s < sets + SETS; s++) {
            if (!s->wanted)
                continue;
            run(s, functions[f].name, x, s->out, n);
            for (size_t i = 0; i < n; i++) {
                const double size = fabs(exact[i]);
                if (functions[f].shortened && ((size < 0x1p-25 && s->out[i] < 0x1p-24) || (size > 65520 && !isinf(size))))
                    continue;
                const double error = ulps(s->out[i], exact[i]);
                if (error > s->worst[f])
                    s->worst[f] = error, s->at[f] = x[i];
            }
        }
        for (size_t i = 0; i < SETS; i += 2)
            if (sets[i].wanted && sets[i + 1].wanted)
                differ += differences(sets[i].out, sets[i + 1].out, n);
    }
    return differ;
}

int
main(int count, char **given)
{
    static float x[BLOCK];
    if (count < 5)
        return fprintf(stderr, "words_sweep FIRST LAST STEP NAME...\n"), 2;
    const uint64_t first = strtoull(given[1], NULL, 0), last = strtoull(given[2], NULL, 0);
    const uint64_t step = strtoull(given[3], NULL, 0);
    bool all = true;
    for (int i = 4; i < count; i++) {
        for (size_t s = 0; s < SETS; s++)
            sets[s].wanted |= strcmp(given[i], sets[s].name) == 0;
        for (size_t f = 0; f < FUNCTIONS; f++)
            if (strcmp(given[i], functions[f].name) == 0)
                functions[f].wanted = true, all = false;
    }
    for (size_t f = 0; f < FUNCTIONS; f++)
        functions[f].wanted |= all;

    size_t differ = 0, tried = 0;
    for (uint64_t at = first; at <= last;) {
        size_t n = 0;
        for (; n < BLOCK && at <= last; n++, at += step)
            memcpy(&x[n], &(uint32_t){(uint32_t)at}, sizeof *x);
        differ += try_block(x, n);
        tried += n;
    }
    for (size_t s = 0; s < SETS; s++)
        for (size_t f = 0; f < FUNCTIONS; f++)
            if (sets[s].wanted && functions[f].wanted)
                printf("%s %s %.4f %a\n", functions[f].name, sets[s].name, sets[s].worst[f], (double)sets[s].at[f]);
    printf("tried %zu\ndiffer %zu\n", tried, differ);
    return 0;
}

#ifndef CK_COPY_H
#define CK_COPY_H
/*
 * Rows moved as they are, whatever elements they hold: bytes, so that a NaN keeps what it carries.
 *
 *     ck_copy(to, from, n, stream)     n bytes
 *     ck_clear(to, n, stream)          n bytes of zeros
 *
 * Where `stream`, a constant, whole lines of `to` go past the caches (ck_streams() in words.h says when), the bytes
 * before and behind them do not; ck_stream_end() after the last.
 */
#include "simd/words.h"

#include <string.h>

enum { CK_LINE = 64 };

/* The first and the last `half` of n bytes, which may overlap; read before anything is written. */
CK_TEMPLATE void
ck_copy_ends(char *to, const char *from, size_t n, size_t half)
{
    char first[CK_LINE], last[CK_LINE];
    memcpy(first, from, half);
    memcpy(last, from + n - half, half);
    memcpy(to, first, half);
    memcpy(to + n - half, last, half);
}

/* At most a line. */
CK_TEMPLATE void
ck_copy_short(char *to, const char *from, size_t n)
{
    if (n >= 32)
        ck_copy_ends(to, from, n, 32);
    else if (n >= 16)
        ck_copy_ends(to, from, n, 16);
    else if (n >= 8)
        ck_copy_ends(to, from, n, 8);
    else if (n >= 4)
        ck_copy_ends(to, from, n, 4);
    else if (n >= 2)
        ck_copy_ends(to, from, n, 2);
    else if (n == 1)
        *to = *from;
}

/* Bytes before the first whole line of `to`, n at most. */
static inline size_t
ck_before_line(const char *to, size_t n)
{
    const size_t before = (0 - (uintptr_t)to) % CK_LINE;
    return before < n ? before : n;
}

CK_TEMPLATE void
ck_copy(char *to, const char *from, size_t n, bool stream)
{
    size_t i = stream ? ck_before_line(to, n) : 0;
    if (i != 0)
        ck_copy_short(to, from, i);
    for (; i + CK_LINE <= n; i += CK_LINE) {
        v16 line;
        memcpy(&line, from + i, CK_LINE);
        if (stream)
            v16_stream_f32((float *)(void *)(to + i), line, 16);
        else
            memcpy(to + i, &line, CK_LINE);
    }
    if (i < n)
        ck_copy_short(to + i, from + i, n - i);
}

CK_TEMPLATE void
ck_clear(char *to, size_t n, bool stream)
{
    size_t i = stream ? ck_before_line(to, n) : n;
    memset(to, 0, i);
    for (; i + CK_LINE <= n; i += CK_LINE)
        v16_stream_f32((float *)(void *)(to + i), v16_zero(), 16);
    if (i < n)
        memset(to + i, 0, n - i);
}
#endif

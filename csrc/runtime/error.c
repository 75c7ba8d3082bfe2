#include "runtime/error.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char text[512];

ck_status
ck_refuse(ck_status status, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    return status;
}

const char *
ck_error_text(void)
{
    return text;
}

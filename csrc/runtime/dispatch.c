#include "runtime/dispatch.h"
#include "runtime/amx.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <pthread.h>
#include <string.h>

#define CK_ISA_ROW(isa, lacks) \
    extern const ck_kernels ck_kernels_f32_##isa, ck_kernels_bf16_##isa, ck_kernels_f16_##isa;
#include "isa.def"

#if defined(__x86_64__)
/* clang 14 does not know the word: CPUID itself.  That the system saves the registers is asked together with AVX2. */
static bool
has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}
#endif

static ck_isa isas[8];

static void
look(void)
{
    size_t n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#define CK_SET(isa, lacks, model)                                                                           \
    isas[n++] = (ck_isa){#isa, (lacks), {[CK_F32] = &ck_kernels_f32_##isa, [CK_BF16] = &ck_kernels_bf16_##isa, \
                                         [CK_F16] = &ck_kernels_f16_##isa}, (model)};
#define CK_ISA_ROW(isa, lacks) CK_SET(isa, lacks, false)
#define CK_ISA_MODEL(isa, lacks) CK_SET(isa, lacks, true)
#include "isa.def"
}

const ck_isa *
ck_isas(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, look);
    return isas;
}

const ck_isa *
ck_isa_named(const char *name)
{
    for (const ck_isa *isa = ck_isas(); isa->name; isa++)
        if (isa->lacking == NULL && (name == NULL ? !isa->model : strcmp(isa->name, name) == 0))
            return isa;
    return NULL;
}

const ck_kernels *
ck_kernels_for(const char *isa, ck_dtype dtype)
{
    const ck_isa *found = ck_isa_named(isa);
    return found != NULL ? found->of[dtype] : NULL;
}

/* The instruction sets the kernels are compiled for: the one list, best first. A row X(name) stands for the files
 * isa/name_f32.c and isa/name_f64.c, which compile to nothing on other processors, and a test in isa.c. */
#ifndef FASTCE_ISA_H
#define FASTCE_ISA_H

#include "core.h"

#if defined(FASTCE_ISAS) /* a list of the build's own: fewer, for what compiles the core again and again */
#elif defined(__x86_64__)
#define FASTCE_ISAS(X) X(avx512) X(avx2) X(portable)
#elif defined(__aarch64__)
#define FASTCE_ISAS(X) X(neon) X(portable)
#else
#define FASTCE_ISAS(X) X(portable)
#endif

typedef struct isa {
    const char *name;
    bool (*runs)(void);
    const kernels *f32, *f64;
} isa;

/* The named ISA, or the best that runs where name is NULL; NULL where there is none such. */
const isa *find_isa(const char *name);

#endif

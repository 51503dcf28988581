/* Counts checks, prints those that fail, and the instruction sets that run: what the C tests share. */
#ifndef CHECK_H
#define CHECK_H

#include "fastce.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static int checks_passed, checks_failed;

__attribute__((format(printf, 2, 3))) static inline void check(bool passed, const char *format, ...) {
    enum { MAX_SHOWN = 30 };
    if (passed) {
        checks_passed++;
        return;
    }
    if (checks_failed++ >= MAX_SHOWN) return;
    va_list arguments;
    va_start(arguments, format);
    fputs("FAILED: ", stdout);
    vprintf(format, arguments);
    puts("");
    va_end(arguments);
}

/* The instruction sets of the library that this processor runs, best first. */
static inline const char *const *running_isas(void) {
    enum { MAX_ISAS = 16 };
    static const char *running[MAX_ISAS + 1];
    int count = 0;
    for (const char *const *isa = fastce_isa_names(); *isa && count < MAX_ISAS; isa++)
        if (fastce_isa_runs(*isa)) running[count++] = *isa;
    running[count] = NULL;
    return running;
}

/* The last line of a test program, and its exit status. */
static inline int report(void) {
    for (const char *const *isa = fastce_isa_names(); *isa; isa++)
        printf("%s: %s\n", *isa, fastce_isa_runs(*isa) ? "ran" : "not run, this processor cannot");
    printf("%d passed, %d failed\n", checks_passed, checks_failed);
    return checks_failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

static inline const char *dtype_name(fastce_dtype dtype) {
    static const char *const name[FASTCE_DTYPE_COUNT] = {"f16", "bf16", "f32", "f64", "bool", "i8", "i16",
                                                         "i32", "i64",  "u8",  "u16", "u32",  "u64"};
    return name[dtype];
}

static const fastce_dtype logits_dtypes[] = {FASTCE_F16, FASTCE_BF16, FASTCE_F32, FASTCE_F64};
enum { LOGITS_DTYPES = sizeof logits_dtypes / sizeof *logits_dtypes };

#endif

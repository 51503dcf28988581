/* The functions of fastce.h as pointers, for programs that get the library at run time instead of linking it: Cython
 * modules, through the capsule of fastce/c_api.pxd, or whoever looks up fastce_get_functions with dlsym. */
#ifndef FASTCE_FUNCTIONS_H
#define FASTCE_FUNCTIONS_H

#include "fastce.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Its name ends in the ABI version, so that a module compiled for another one is refused when it is imported. Within a
 * version functions are added at the end only. */
typedef struct fastce_functions_1 {
    int (*abi_version)(void);
    const char *(*status_message)(fastce_status status);
    fastce_status (*scan)(const fastce_problem *problem, int num_threads, fastce_totals *totals);
    fastce_status (*run)(const fastce_problem *problem, const char *isa, int num_threads, fastce_totals *totals);
    const char *const *(*isa_names)(void);
    int (*isa_runs)(const char *isa);
    const char *const *(*cpu_feature_names)(void);
    int (*cpu_has)(const char *feature);
    const char *(*kernel_name)(const fastce_problem *problem);
    int (*has_openmp)(void);
    fastce_status (*cross_entropy)(fastce_matrix logits, fastce_column labels, const fastce_options *options,
                                   int num_threads, fastce_result *result);
    fastce_status (*cross_entropy_with_grad)(fastce_matrix logits, fastce_column labels, const fastce_options *options,
                                             fastce_matrix grad, int num_threads, fastce_result *result);
    fastce_status (*dense_cross_entropy)(fastce_matrix logits, fastce_matrix target, const fastce_options *options,
                                         int num_threads, fastce_result *result);
    fastce_status (*dense_cross_entropy_with_grad)(fastce_matrix logits, fastce_matrix target,
                                                   const fastce_options *options, fastce_matrix grad, int num_threads,
                                                   fastce_result *result);
    fastce_status (*binary_cross_entropy)(fastce_matrix logits, fastce_matrix target, const fastce_options *options,
                                          int num_threads, fastce_result *result);
    fastce_status (*binary_cross_entropy_with_grad)(fastce_matrix logits, fastce_matrix target,
                                                    const fastce_options *options, fastce_matrix grad, int num_threads,
                                                    fastce_result *result);
    fastce_status (*softmax)(fastce_matrix logits, fastce_matrix out, int num_threads);
    fastce_status (*log_softmax)(fastce_matrix logits, fastce_matrix out, int num_threads);
    fastce_status (*logsumexp)(fastce_matrix logits, void *lse, int num_threads);
} fastce_functions_1;

FASTCE_API const fastce_functions_1 *fastce_get_functions(void);

#ifdef __cplusplus
}
#endif
#endif

# What fastce._core offers to other Cython modules: the functions of the C API, which c_api.pxd wraps.
from fastce._c_types cimport *


cdef extern from "fastce_functions.h" nogil:
    ctypedef struct fastce_functions_1:
        int (*abi_version)() noexcept nogil
        const char *(*status_message)(fastce_status status) noexcept nogil
        fastce_status (*scan)(const fastce_problem *problem, int num_threads, fastce_totals *totals) noexcept nogil
        fastce_status (*run)(const fastce_problem *problem, const char *isa, int num_threads,
                             fastce_totals *totals) noexcept nogil
        const char *const *(*isa_names)() noexcept nogil
        int (*isa_runs)(const char *isa) noexcept nogil
        const char *const *(*cpu_feature_names)() noexcept nogil
        int (*cpu_has)(const char *feature) noexcept nogil
        const char *(*kernel_name)(const fastce_problem *problem) noexcept nogil
        int (*has_openmp)() noexcept nogil
        fastce_status (*cross_entropy)(fastce_matrix logits, fastce_column labels, const fastce_options *options,
                                       int num_threads, fastce_result *result) noexcept nogil
        fastce_status (*cross_entropy_with_grad)(fastce_matrix logits, fastce_column labels,
                                                 const fastce_options *options, fastce_matrix grad,
                                                 int num_threads, fastce_result *result) noexcept nogil
        fastce_status (*dense_cross_entropy)(fastce_matrix logits, fastce_matrix target, const fastce_options *options,
                                             int num_threads, fastce_result *result) noexcept nogil
        fastce_status (*dense_cross_entropy_with_grad)(fastce_matrix logits, fastce_matrix target,
                                                       const fastce_options *options, fastce_matrix grad,
                                                       int num_threads, fastce_result *result) noexcept nogil
        fastce_status (*binary_cross_entropy)(fastce_matrix logits, fastce_matrix target, const fastce_options *options,
                                              int num_threads, fastce_result *result) noexcept nogil
        fastce_status (*binary_cross_entropy_with_grad)(fastce_matrix logits, fastce_matrix target,
                                                        const fastce_options *options, fastce_matrix grad,
                                                        int num_threads, fastce_result *result) noexcept nogil
        fastce_status (*softmax)(fastce_matrix logits, fastce_matrix out, int num_threads) noexcept nogil
        fastce_status (*log_softmax)(fastce_matrix logits, fastce_matrix out, int num_threads) noexcept nogil
        fastce_status (*logsumexp)(fastce_matrix logits, void *lse, int num_threads) noexcept nogil

    const fastce_functions_1 *fastce_get_functions()


cdef fastce_functions_1 *functions

# The C API of fastce.h for Cython: `from fastce cimport c_api`, then c_api.fastce_cross_entropy(...) and so on.
#
# Nothing is linked. A module that uses this takes the functions, when it is imported, from the capsule that
# fastce._core has for them, whose name carries the version of the ABI: where it is not the one the module was compiled
# for, the import fails and says so. Compile with fastce.get_include() among the include directories.
from libc.stdint cimport int32_t, int64_t

from fastce._c_types cimport *
from fastce._core cimport functions


cdef inline int fastce_abi_version() noexcept nogil:
    return functions.abi_version()


cdef inline const char *fastce_status_message(fastce_status status) noexcept nogil:
    return functions.status_message(status)


cdef inline fastce_status fastce_scan(const fastce_problem *problem, int num_threads,
                                      fastce_totals *totals) noexcept nogil:
    return functions.scan(problem, num_threads, totals)


cdef inline fastce_status fastce_run(const fastce_problem *problem, const char *isa, int num_threads,
                                     fastce_totals *totals) noexcept nogil:
    return functions.run(problem, isa, num_threads, totals)


cdef inline const char *const *fastce_isa_names() noexcept nogil:
    return functions.isa_names()


cdef inline int fastce_isa_runs(const char *isa) noexcept nogil:
    return functions.isa_runs(isa)


cdef inline const char *const *fastce_cpu_feature_names() noexcept nogil:
    return functions.cpu_feature_names()


cdef inline int fastce_cpu_has(const char *feature) noexcept nogil:
    return functions.cpu_has(feature)


cdef inline const char *fastce_kernel_name(const fastce_problem *problem) noexcept nogil:
    return functions.kernel_name(problem)


cdef inline int fastce_has_openmp() noexcept nogil:
    return functions.has_openmp()


cdef inline fastce_status fastce_cross_entropy(fastce_matrix logits, fastce_column labels,
                                               const fastce_options *options, int num_threads,
                                               fastce_result *result) noexcept nogil:
    return functions.cross_entropy(logits, labels, options, num_threads, result)


cdef inline fastce_status fastce_cross_entropy_with_grad(fastce_matrix logits, fastce_column labels,
                                                         const fastce_options *options, fastce_matrix grad,
                                                         int num_threads, fastce_result *result) noexcept nogil:
    return functions.cross_entropy_with_grad(logits, labels, options, grad, num_threads, result)


cdef inline fastce_status fastce_dense_cross_entropy(fastce_matrix logits, fastce_matrix target,
                                                     const fastce_options *options, int num_threads,
                                                     fastce_result *result) noexcept nogil:
    return functions.dense_cross_entropy(logits, target, options, num_threads, result)


cdef inline fastce_status fastce_dense_cross_entropy_with_grad(fastce_matrix logits, fastce_matrix target,
                                                               const fastce_options *options, fastce_matrix grad,
                                                               int num_threads, fastce_result *result) noexcept nogil:
    return functions.dense_cross_entropy_with_grad(logits, target, options, grad, num_threads, result)


cdef inline fastce_status fastce_binary_cross_entropy(fastce_matrix logits, fastce_matrix target,
                                                      const fastce_options *options, int num_threads,
                                                      fastce_result *result) noexcept nogil:
    return functions.binary_cross_entropy(logits, target, options, num_threads, result)


cdef inline fastce_status fastce_binary_cross_entropy_with_grad(fastce_matrix logits, fastce_matrix target,
                                                                const fastce_options *options, fastce_matrix grad,
                                                                int num_threads, fastce_result *result) noexcept nogil:
    return functions.binary_cross_entropy_with_grad(logits, target, options, grad, num_threads, result)


cdef inline fastce_status fastce_softmax(fastce_matrix logits, fastce_matrix out, int num_threads) noexcept nogil:
    return functions.softmax(logits, out, num_threads)


cdef inline fastce_status fastce_log_softmax(fastce_matrix logits, fastce_matrix out, int num_threads) noexcept nogil:
    return functions.log_softmax(logits, out, num_threads)


cdef inline fastce_status fastce_logsumexp(fastce_matrix logits, void *lse, int num_threads) noexcept nogil:
    return functions.logsumexp(logits, lse, num_threads)

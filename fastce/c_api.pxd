# The C API of fastce.h for Cython.
from libc.stdint cimport int32_t, int64_t


cdef extern from "fastce.h" nogil:
    ctypedef enum fastce_status:
        FASTCE_OK
        FASTCE_BAD_ROW
        FASTCE_BAD_ARGUMENT
        FASTCE_BAD_ISA
        FASTCE_NO_MEMORY

    ctypedef enum fastce_dtype:
        FASTCE_F16
        FASTCE_BF16
        FASTCE_F32
        FASTCE_F64
        FASTCE_BOOL
        FASTCE_I8
        FASTCE_I16
        FASTCE_I32
        FASTCE_I64
        FASTCE_U8
        FASTCE_U16
        FASTCE_U32
        FASTCE_U64

    ctypedef enum fastce_output:
        FASTCE_LOSS
        FASTCE_GRAD
        FASTCE_LSE
        FASTCE_SOFTMAX
        FASTCE_LOG_SOFTMAX
        FASTCE_STATISTICS

    ctypedef enum fastce_target:
        FASTCE_NO_TARGET
        FASTCE_LABELS
        FASTCE_DENSE
        FASTCE_SPARSE

    ctypedef enum fastce_kind:
        FASTCE_LOGITS

    ctypedef struct fastce_array:
        void *data
        fastce_dtype dtype
        int32_t byte_swapped
        ptrdiff_t class_stride
        const ptrdiff_t *strides

    ctypedef struct fastce_statistics:
        void *lse
        void *loss
        void *entropy
        int64_t *argmax
        void *target_probability
        int64_t *rank
        void *margin
        unsigned char *correct

    ctypedef struct fastce_problem:
        fastce_output output
        fastce_target target_kind
        int32_t n_axes
        const int64_t *shape
        int64_t n_classes
        fastce_array logits
        fastce_array target
        fastce_array sample_weight
        fastce_array out
        fastce_array grad_output
        double target_scale
        const double *class_weight
        const double *class_vector
        double z_loss
        double grad_scale
        int32_t has_ignore_index
        int64_t ignore_index
        void *row_values
        fastce_kind kind
        double clip
        double temperature
        double gamma
        double positive
        double negative
        fastce_array factor
        fastce_array positive_weight
        const fastce_statistics *statistics
        double softcap
        fastce_array probabilities
        int64_t n_listed
        int32_t spread_missing

    ctypedef struct fastce_totals:
        int64_t bad_row
        double loss
        double weight

    int fastce_abi_version()
    const char *fastce_status_message(fastce_status status)
    fastce_status fastce_scan(const fastce_problem *problem, int num_threads, fastce_totals *totals)
    fastce_status fastce_run(const fastce_problem *problem, const char *isa, int num_threads, fastce_totals *totals)
    const char *const *fastce_isa_names()
    int fastce_isa_runs(const char *isa)
    const char *const *fastce_cpu_feature_names()
    int fastce_cpu_has(const char *feature)
    const char *fastce_kernel_name(const fastce_problem *problem)
    int fastce_has_openmp()

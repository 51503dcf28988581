# The types of fastce.h, and its inline functions, for Cython: c_api.pxd passes them on.
from libc.stdint cimport int32_t, int64_t


cdef extern from "fastce.h" nogil:
    int FASTCE_ABI_VERSION

    ctypedef enum fastce_status:
        FASTCE_OK
        FASTCE_BAD_ROW
        FASTCE_BAD_ARGUMENT
        FASTCE_BAD_ISA
        FASTCE_NO_MEMORY
        FASTCE_BAD_POINTER
        FASTCE_BAD_DTYPE
        FASTCE_BAD_SIZE
        FASTCE_BAD_STRIDE
        FASTCE_BAD_OVERLAP

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
        FASTCE_LOG_PROBABILITIES
        FASTCE_PROBABILITIES
        FASTCE_KL
        FASTCE_JS
        FASTCE_TEACHER
        FASTCE_BINARY_LOGITS
        FASTCE_BINARY_PROBABILITIES
        FASTCE_SQUARES

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
        void *maximum
        void *rest

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
        int32_t scanned

    ctypedef struct fastce_totals:
        int64_t bad_row
        double loss
        double weight

    ctypedef struct fastce_matrix:
        void *data
        fastce_dtype dtype
        int64_t n_rows
        int64_t n_classes
        ptrdiff_t row_stride
        ptrdiff_t class_stride

    ctypedef struct fastce_column:
        void *data
        fastce_dtype dtype
        ptrdiff_t stride

    ctypedef enum fastce_reduction:
        FASTCE_MEAN
        FASTCE_SUM

    ctypedef struct fastce_options:
        fastce_reduction reduction
        double denominator
        double label_smoothing
        double z_loss
        const double *class_weight
        const double *pos_weight
        fastce_column sample_weight
        fastce_column grad_output
        int32_t has_ignore_index
        int64_t ignore_index
        void *losses

    ctypedef struct fastce_result:
        double loss
        double denominator
        int64_t bad_row

    # Inline in the header: they need no library.
    fastce_problem fastce_new_problem()
    int fastce_dtype_size(fastce_dtype dtype)
    fastce_matrix fastce_matrix_of(const void *data, fastce_dtype dtype, int64_t n_rows, int64_t n_classes)
    fastce_column fastce_column_of(const void *data, fastce_dtype dtype)

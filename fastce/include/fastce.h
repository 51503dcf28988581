/* fastce: stable softmax cross entropy and its relatives over large batches, as plain C.
 *
 * Two levels. The functions for matrices, at the end, do the common cases in one call each. Below them one record
 * describes any call, over any number of axes, and two functions carry it out. Every function takes its thread count
 * (results do not depend on it), keeps no state, leaves no allocation behind, checks its arguments and returns a status;
 * where that is not FASTCE_OK, no array was written. Python is one client of this header. The mathematics is in the
 * documentation of fastce.cross_entropy; a target measure q stands for labels, class weights, label smoothing and dense
 * targets alike. */
#ifndef FASTCE_H
#define FASTCE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes where a program that was compiled with another version of this header would no longer run. */
#define FASTCE_ABI_VERSION 1

#if defined(__GNUC__)
#define FASTCE_API __attribute__((visibility("default")))
#else
#define FASTCE_API
#endif

typedef enum fastce_status {
    FASTCE_OK = 0,
    FASTCE_BAD_ROW = 1,      /* totals.bad_row names the first row with an unacceptable label, weight or target */
    FASTCE_BAD_ARGUMENT = 2, /* a number or a choice is out of its range, or does not go with the others */
    FASTCE_BAD_ISA = 3,      /* unknown, or this processor cannot run it */
    FASTCE_NO_MEMORY = 4,
    FASTCE_BAD_POINTER = 5, /* NULL where something is needed, or not aligned where the type is fixed */
    FASTCE_BAD_DTYPE = 6,   /* unknown, or not for this array */
    FASTCE_BAD_SIZE = 7,    /* negative, no classes, or more than 64 bits count */
    FASTCE_BAD_STRIDE = 8,  /* reaches beyond the address space, or elements of an output share memory */
    FASTCE_BAD_OVERLAP = 9, /* an output shares memory with another array; only logits may be overwritten, as a whole */
    FASTCE_STATUS_COUNT
} fastce_status;

typedef enum fastce_dtype {
    FASTCE_F16 = 0,
    FASTCE_BF16,
    FASTCE_F32,
    FASTCE_F64,
    FASTCE_BOOL,
    FASTCE_I8,
    FASTCE_I16,
    FASTCE_I32,
    FASTCE_I64,
    FASTCE_U8,
    FASTCE_U16,
    FASTCE_U32,
    FASTCE_U64,
    FASTCE_DTYPE_COUNT
} fastce_dtype;

typedef enum fastce_output {
    FASTCE_LOSS = 0,    /* row_values: losses */
    FASTCE_GRAD,        /* row_values: losses; out: gradient times grad_scale and grad_output */
    FASTCE_LSE,         /* row_values: log of the sum of exponentials */
    FASTCE_SOFTMAX,     /* out: probabilities times grad_scale and grad_output */
    FASTCE_LOG_SOFTMAX, /* out */
    FASTCE_STATISTICS,  /* statistics, of logits with labels or without a target */
    FASTCE_OUTPUT_COUNT
} fastce_output;

typedef enum fastce_target {
    FASTCE_NO_TARGET = 0,
    FASTCE_LABELS, /* target holds one integer a row; not for element-wise kinds, nor for divergences */
    FASTCE_DENSE,  /* target has the shape of the logits */
    FASTCE_SPARSE, /* target holds n_listed classes a row, probabilities as many masses; of LOGITS */
    FASTCE_TARGET_COUNT
} fastce_target;

/* What `logits` holds, and so what the loss of a row is made of. The binary kinds and squares are element-wise: each
 * element is a row of one class, with a dense target t, and q = target_scale * t + class_vector_0 stands for it. */
typedef enum fastce_kind {
    FASTCE_LOGITS = 0,        /* softmax cross entropy: sum of q_k * (lse - x_k), and the z term */
    FASTCE_LOG_PROBABILITIES, /* sum of q_k * -x_k */
    FASTCE_PROBABILITIES,     /* sum of q_k * -log(x_k) */
    FASTCE_KL,                /* divergence of a dense target from x: sum of q_k * log(q_k / x_k) */
    FASTCE_JS,                /* of a dense target and x: half of both their divergences from their mean */
    FASTCE_TEACHER, /* temperature^2 * cross entropy of softmax(x / temperature) against softmax(t / temperature), the
                       dense target t holding a teacher's logits: F16, BF16, F32 or F64 */
    FASTCE_BINARY_LOGITS,        /* positive * q * f(-x) * softplus(-x) + negative * (1 - q) * f(x) * softplus(x), with
                                 f(x) = sigmoid(x)^gamma */
    FASTCE_BINARY_PROBABILITIES, /* positive * q * -log(x) + negative * (1 - q) * -log(1 - x) */
    FASTCE_SQUARES,              /* (x - t)^2 */
    FASTCE_KIND_COUNT
} fastce_kind;

/* An array seen through the positions of the problem: data is NULL where there is none. Strides are in bytes and may be
 * zero (but for outputs) or negative; elements need no alignment. class_stride is not read for arrays without a class
 * axis. */
typedef struct fastce_array {
    void *data;
    fastce_dtype dtype;
    int32_t byte_swapped;
    ptrdiff_t class_stride;
    const ptrdiff_t *strides; /* one for each of n_axes */
} fastce_array;

/* What FASTCE_STATISTICS fills, one number a row; NULL for what is not asked for. The first type is double for F64 logits,
 * else float. An ignored row, or one without a label, has loss 0, target_probability and margin NaN, rank -1, correct 0. */
typedef struct fastce_statistics {
    void *lse;
    void *loss;
    void *entropy;            /* of softmax */
    int64_t *argmax;          /* the first of equals; the first NaN, where there is one */
    void *target_probability; /* of softmax */
    int64_t *rank;            /* number of logits that are greater than the label's */
    void *margin;             /* the label's logit minus the best other one */
    unsigned char *correct;   /* whether argmax is the label */
    void *maximum;            /* m, the greatest logit; NaN where one is */
    void *rest;               /* the sum of exp(x_k - m) but for one class at m; NaN where m is not finite */
} fastce_statistics;

/* Rows are numbered in C order of shape. For a row with sample weight s (1 without sample_weight),
 *     labels   q_k = s * (target_scale * class_weight_k * [k = label] + class_vector_k)
 *     dense    q_k = s * (target_scale * class_weight_k * target_k    + class_vector_k)
 *     sparse   the same with target_k the sum of the probabilities of entries k of the row's list, -1 being no entry; and
 *              with spread_missing, for classes without an entry, their parts of what the sum of all lacks to 1
 * and z = s * z_loss, the loss of an element-wise kind being multiplied by s * factor in all. With temperature or softcap
 * LOGITS x stand for softcap * tanh(x / temperature / softcap), and the gradient is that of x. With gamma a row of LOGITS
 * that costs q_label * c, c = -log(p), costs q_label * (1 - p)^gamma * c: with labels, and without class_vector, z_loss,
 * temperature and softcap. A row whose label is ignore_index, or whose sample weight is 0, is ignored: its logits are not read, its row value and its gradient are 0. */
typedef struct fastce_problem {
    fastce_output output;
    fastce_target target_kind;
    int32_t n_axes;
    const int64_t *shape;
    int64_t n_classes;
    fastce_array logits;        /* F16, BF16, F32 or F64 */
    fastce_array target;        /* labels: any integer; dense: any dtype */
    fastce_array sample_weight; /* any dtype, optional */
    fastce_array out;           /* F16, BF16, F32 or F64; may be the logits */
    fastce_array grad_output;   /* any dtype, optional */
    double target_scale;
    const double *class_weight; /* n_classes, optional */
    const double *class_vector; /* n_classes, optional */
    double z_loss;
    double grad_scale;
    int32_t has_ignore_index;
    int64_t ignore_index; /* for U64 labels, the bits of the unsigned value */
    void *row_values;     /* contiguous, optional but for LSE; double for F64 logits, else float */
    fastce_kind kind;     /* other than LOGITS: output LOSS or GRAD, for divergences LOSS */
    double clip;          /* probabilities are taken as at least this and at most 1 - clip; 0 for none */
    double temperature;   /* of TEACHER, and of LOGITS where neither 0 nor 1 */
    double gamma;         /* of BINARY_LOGITS; and of LOGITS with labels alone, a focal loss: see above */
    double positive;      /* of the binary kinds, where positive_weight multiplies it */
    double negative;
    fastce_array factor; /* any dtype, optional, of element-wise kinds: a weight that totals.weight leaves out */
    fastce_array positive_weight; /* any dtype, optional, of BINARY_LOGITS */
    const fastce_statistics *statistics;
    double softcap;             /* of LOGITS, output LOSS or GRAD; 0 for none */
    fastce_array probabilities; /* of SPARSE: any dtype, the class axis n_listed long, as that of target is */
    int64_t n_listed;
    int32_t spread_missing;
    int32_t
        scanned; /* 1 where fastce_scan has accepted these arrays: fastce_run need not look at them before it writes */
} fastce_problem;

typedef struct fastce_totals {
    int64_t bad_row; /* -1 where all rows are acceptable */
    double loss;     /* sum of the row values */
    double weight;   /* sum of s * class_weight[label] over rows not ignored (labels), of s (dense) */
} fastce_totals;

FASTCE_API int fastce_abi_version(void);
FASTCE_API const char *fastce_status_message(fastce_status status);

/* Checks labels, sample weights and dense targets and totals the weights; reads no logits, writes no array. */
FASTCE_API fastce_status fastce_scan(const fastce_problem *problem, int num_threads, fastce_totals *totals);

/* Carries the problem out on the named ISA, or on the best one where isa is NULL. Rows are checked before anything is
 * written, unless `scanned` says that they were, and again as they are met: labels that another thread changes meanwhile
 * are reported, late, and never used. */
FASTCE_API fastce_status fastce_run(const fastce_problem *problem, const char *isa, int num_threads,
                                    fastce_totals *totals);

/* The ISAs this library was compiled with, best first: a NULL-terminated list; and whether this processor runs one. */
FASTCE_API const char *const *fastce_isa_names(void);
FASTCE_API int fastce_isa_runs(const char *isa);

/* The processor features that the ISAs ask for, a NULL-terminated list; and whether this processor has one. */
FASTCE_API const char *const *fastce_cpu_feature_names(void);
FASTCE_API int fastce_cpu_has(const char *feature);

/* The kernel a problem gets, which depends on the number of classes, the dtype and the class stride only. */
FASTCE_API const char *fastce_kernel_name(const fastce_problem *problem);

/* 1 where the library was compiled with OpenMP, else every call runs on the calling thread. */
FASTCE_API int fastce_has_openmp(void);

/* A problem with nothing but the factors that are 1 unless something else is asked for. */
static inline fastce_problem fastce_new_problem(void) {
    fastce_problem problem;
    memset(&problem, 0, sizeof problem);
    problem.target_scale = problem.grad_scale = problem.temperature = problem.positive = problem.negative = 1;
    return problem;
}

/* --- the common cases: matrices of rows and classes ------------------------------------------------------------------ */

/* Element (i, k) lies at data + i * row_stride + k * class_stride. Strides are in bytes and may be zero (but for outputs)
 * or negative. */
typedef struct fastce_matrix {
    void *data;
    fastce_dtype dtype;
    int64_t n_rows, n_classes;
    ptrdiff_t row_stride, class_stride;
} fastce_matrix;

/* One number a row, at data + i * stride; data is NULL where there is none. */
typedef struct fastce_column {
    void *data;
    fastce_dtype dtype;
    ptrdiff_t stride;
} fastce_column;

/* The bytes of an element; 0 for an unknown dtype. */
static inline int fastce_dtype_size(fastce_dtype dtype) {
    switch (dtype) {
    case FASTCE_BOOL:
    case FASTCE_I8:
    case FASTCE_U8:
        return 1;
    case FASTCE_F16:
    case FASTCE_BF16:
    case FASTCE_I16:
    case FASTCE_U16:
        return 2;
    case FASTCE_F32:
    case FASTCE_I32:
    case FASTCE_U32:
        return 4;
    case FASTCE_F64:
    case FASTCE_I64:
    case FASTCE_U64:
        return 8;
    default:
        return 0;
    }
}

/* Pointers are taken, not what they point to: an output need not have been written before. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define FASTCE_POINTER_ONLY __attribute__((access(none, 1)))
#else
#define FASTCE_POINTER_ONLY
#endif

/* A matrix whose rows follow one another in memory, and a column whose numbers do. */
FASTCE_POINTER_ONLY static inline fastce_matrix fastce_matrix_of(const void *data, fastce_dtype dtype, int64_t n_rows,
                                                                 int64_t n_classes) {
    fastce_matrix matrix;
    matrix.data = (void *)(uintptr_t)data;
    matrix.dtype = dtype;
    matrix.n_rows = n_rows;
    matrix.n_classes = n_classes;
    matrix.class_stride = fastce_dtype_size(dtype);
    matrix.row_stride = (ptrdiff_t)((uint64_t)n_classes * (uint64_t)matrix.class_stride);
    return matrix;
}

FASTCE_POINTER_ONLY static inline fastce_column fastce_column_of(const void *data, fastce_dtype dtype) {
    fastce_column column;
    column.data = (void *)(uintptr_t)data;
    column.dtype = dtype;
    column.stride = fastce_dtype_size(dtype);
    return column;
}

typedef enum fastce_reduction { FASTCE_MEAN = 0, FASTCE_SUM, FASTCE_REDUCTION_COUNT } fastce_reduction;

/* All zero is no option; so is NULL in place of the record. */
typedef struct fastce_options {
    fastce_reduction reduction;  /* what result.loss is, and what the gradient is the gradient of */
    double denominator;          /* what MEAN divides by in place of its own, where > 0 */
    double label_smoothing;      /* in [0, 1]; a binary target moves towards 1/2 */
    double z_loss;               /* >= 0; not for binary cross entropy */
    const double *class_weight;  /* n_classes numbers, finite and >= 0, or NULL */
    const double *pos_weight;    /* the same, for binary cross entropy only */
    fastce_column sample_weight; /* any dtype, finite and >= 0; a row of weight 0 is ignored */
    fastce_column grad_output;   /* any dtype; multiplies the gradient of each row */
    int32_t has_ignore_index;    /* for labels: those that equal ignore_index are of ignored rows */
    int64_t ignore_index;
    void
        *losses; /* receives the losses, contiguous: one a row (one an element for binary cross entropy), double for F64
                     logits, else float; or NULL */
} fastce_options;

/* Written where the status is FASTCE_OK; bad_row alone where it is FASTCE_BAD_ROW. */
typedef struct fastce_result {
    double loss;        /* NaN where a mean has nothing to average */
    double denominator; /* of MEAN: sum of the weights of the rows (or elements); 1 of SUM */
    int64_t bad_row;    /* -1, or the first row whose label, sample weight or dense target is not acceptable */
} fastce_result;

/* Softmax cross entropy of logits (F16, BF16, F32 or F64) against one label a row (any integer dtype), or against dense
 * targets of the logits' shape (any dtype, finite and >= 0), in double precision for F64, else in single. The gradient
 * goes to grad (a floating dtype, the logits' shape), which may be the logits. */
FASTCE_API fastce_status fastce_cross_entropy(fastce_matrix logits, fastce_column labels, const fastce_options *options,
                                              int num_threads, fastce_result *result);
FASTCE_API fastce_status fastce_cross_entropy_with_grad(fastce_matrix logits, fastce_column labels,
                                                        const fastce_options *options, fastce_matrix grad,
                                                        int num_threads, fastce_result *result);
FASTCE_API fastce_status fastce_dense_cross_entropy(fastce_matrix logits, fastce_matrix target,
                                                    const fastce_options *options, int num_threads,
                                                    fastce_result *result);
FASTCE_API fastce_status fastce_dense_cross_entropy_with_grad(fastce_matrix logits, fastce_matrix target,
                                                              const fastce_options *options, fastce_matrix grad,
                                                              int num_threads, fastce_result *result);

/* Binary cross entropy of each logit against a target in [0, 1] (any dtype). class_weight multiplies the losses of its
 * class and is not part of the mean's denominator; pos_weight multiplies what belongs to the target. */
FASTCE_API fastce_status fastce_binary_cross_entropy(fastce_matrix logits, fastce_matrix target,
                                                     const fastce_options *options, int num_threads,
                                                     fastce_result *result);
FASTCE_API fastce_status fastce_binary_cross_entropy_with_grad(fastce_matrix logits, fastce_matrix target,
                                                               const fastce_options *options, fastce_matrix grad,
                                                               int num_threads, fastce_result *result);

/* Each row's probabilities, their logarithms, and the log of the sum of its exponentials (contiguous: double for F64
 * logits, else float). out may be the logits. */
FASTCE_API fastce_status fastce_softmax(fastce_matrix logits, fastce_matrix out, int num_threads);
FASTCE_API fastce_status fastce_log_softmax(fastce_matrix logits, fastce_matrix out, int num_threads);
FASTCE_API fastce_status fastce_logsumexp(fastce_matrix logits, void *lse, int num_threads);

#ifdef __cplusplus
}
#endif
#endif

/* fastce: stable softmax cross entropy and its relatives over large batches, as plain C.
 *
 * One record describes a call, two functions carry it out. Every function takes its thread count, keeps no state and
 * leaves no allocation behind. Python is one client of this header. The mathematics is in the documentation of
 * fastce.cross_entropy; a target measure q stands for labels, class weights, label smoothing and dense targets alike. */
#ifndef FASTCE_H
#define FASTCE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FASTCE_ABI_VERSION 1

#if defined(__GNUC__)
#define FASTCE_API __attribute__((visibility("default")))
#else
#define FASTCE_API
#endif

typedef enum fastce_status {
    FASTCE_OK = 0,
    FASTCE_BAD_ROW = 1,      /* totals.bad_row names the first row with an unacceptable label, weight or target */
    FASTCE_BAD_ARGUMENT = 2, /* a field of the record is out of its range */
    FASTCE_BAD_ISA = 3,      /* unknown, or this processor cannot run it */
    FASTCE_NO_MEMORY = 4,
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
    FASTCE_SOFTMAX,     /* out */
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
 * zero or negative; class_stride is not read for arrays without a class axis. */
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
} fastce_statistics;

/* Rows are numbered in C order of shape. For a row with sample weight s (1 without sample_weight),
 *     labels   q_k = s * (target_scale * class_weight_k * [k = label] + class_vector_k)
 *     dense    q_k = s * (target_scale * class_weight_k * target_k    + class_vector_k)
 *     sparse   the same with target_k the sum of the probabilities of entries k of the row's list, -1 being no entry; and
 *              with spread_missing, for classes without an entry, their parts of what the sum of all lacks to 1
 * and z = s * z_loss, the loss of an element-wise kind being multiplied by s * factor in all. With temperature or softcap
 * LOGITS x stand for softcap * tanh(x / temperature / softcap), and the gradient is that of x. A row whose label is
 * ignore_index, or whose sample weight is 0, is ignored: its logits are not read, its row value and its gradient are 0. */
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
    double gamma;         /* of BINARY_LOGITS */
    double positive;      /* of the binary kinds, where positive_weight multiplies it */
    double negative;
    fastce_array factor; /* any dtype, optional, of element-wise kinds: a weight that totals.weight leaves out */
    fastce_array positive_weight; /* any dtype, optional, of BINARY_LOGITS */
    const fastce_statistics *statistics;
    double softcap;             /* of LOGITS, output LOSS or GRAD; 0 for none */
    fastce_array probabilities; /* of SPARSE: any dtype, the class axis n_listed long, as that of target is */
    int64_t n_listed;
    int32_t spread_missing;
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

/* Carries the problem out on the named ISA, or on the best one where isa is NULL. Rows are checked as they are met: to
 * have nothing written where a row is bad, scan first. */
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

#ifdef __cplusplus
}
#endif
#endif

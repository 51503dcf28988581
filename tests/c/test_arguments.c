/* A table of bad calls for every function of the header: each is refused with the status that says why, and every byte
 * that the call could have reached is as it was. */
#include "check.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <string.h>

enum { OUTER = 2, INNER = 3, ROWS = OUTER * INNER, CLASSES = 5, LISTED = 2 };

/* All the memory of a call, and the call. Bytes before and after an array are there to be overwritten by mistake. */
typedef struct world {
    char before[64];
    float logits[ROWS][CLASSES], dense[ROWS][CLASSES], sample_weight[ROWS], grad_output[ROWS];
    int32_t labels[ROWS];
    double class_weight[CLASSES], class_vector[CLASSES];
    int64_t listed[ROWS][LISTED];
    float probabilities[ROWS][LISTED];
    float out[ROWS][CLASSES], values[ROWS], losses[ROWS * CLASSES], lse[ROWS];
    int64_t rank[ROWS], shape[3];
    ptrdiff_t rows[3], columns[3], classes[3], masses[3], many[64];
    fastce_statistics statistics;
    fastce_problem problem;
    fastce_options options;
    char after[64];
} world;

static world w, as_it_was;

static fastce_array rows_of(float x[ROWS][CLASSES]) {
    return (fastce_array){.data = x, .dtype = FASTCE_F32, .class_stride = sizeof **x, .strides = w.rows};
}

static fastce_array column_of(void *x, fastce_dtype dtype) {
    return (fastce_array){.data = x, .dtype = dtype, .strides = w.columns};
}

static void make_world(fastce_output output) {
    memset(&w, 0, sizeof w);
    for (int i = 0; i < ROWS; i++) {
        for (int k = 0; k < CLASSES; k++) {
            w.logits[i][k] = (float)((i * 7 + k * 3) % 11 - 5);
            w.dense[i][k] = 0.125f * (float)k;
            w.out[i][k] = 77;
        }
        w.labels[i] = i % CLASSES;
        for (int j = 0; j < LISTED; j++) w.listed[i][j] = (i + 3 * j) % CLASSES, w.probabilities[i][j] = 0.25f;
        w.sample_weight[i] = 1 + (float)i;
        w.grad_output[i] = 2;
        w.values[i] = w.lse[i] = 77;
    }
    for (int k = 0; k < CLASSES; k++) w.class_weight[k] = 1 + k, w.class_vector[k] = 0.01;
    w.shape[0] = OUTER, w.shape[1] = INNER, w.shape[2] = 1;
    w.rows[0] = INNER * CLASSES * 4, w.rows[1] = CLASSES * 4;
    w.columns[0] = INNER * 4, w.columns[1] = 4;
    w.classes[0] = INNER * LISTED * 8, w.classes[1] = LISTED * 8;
    w.masses[0] = INNER * LISTED * 4, w.masses[1] = LISTED * 4;
    w.problem = fastce_new_problem();
    fastce_problem *q = &w.problem;
    q->output = output;
    q->n_axes = 2;
    q->shape = w.shape;
    q->n_classes = CLASSES;
    q->logits = rows_of(w.logits);
    q->row_values = w.values;
    if (output == FASTCE_LOSS || output == FASTCE_GRAD) {
        q->target_kind = FASTCE_LABELS;
        q->target = column_of(w.labels, FASTCE_I32);
        q->sample_weight = column_of(w.sample_weight, FASTCE_F32);
        q->class_weight = w.class_weight;
        q->class_vector = w.class_vector;
    }
    if (output == FASTCE_GRAD) q->grad_output = column_of(w.grad_output, FASTCE_F32);
    if (output == FASTCE_GRAD || output == FASTCE_SOFTMAX || output == FASTCE_LOG_SOFTMAX) q->out = rows_of(w.out);
    if (output == FASTCE_STATISTICS) {
        w.statistics = (fastce_statistics){.lse = w.lse, .rank = w.rank};
        q->statistics = &w.statistics;
        q->target_kind = FASTCE_LABELS;
        q->target = column_of(w.labels, FASTCE_I32);
    }
}

static void make_sparse(fastce_problem *q) {
    q->target_kind = FASTCE_SPARSE;
    q->n_listed = LISTED;
    q->target = (fastce_array){.data = w.listed, .dtype = FASTCE_I64, .class_stride = 8, .strides = w.classes};
    q->probabilities =
        (fastce_array){.data = w.probabilities, .dtype = FASTCE_F32, .class_stride = 4, .strides = w.masses};
}

static void *moved(const void *p, ptrdiff_t bytes) { return (void *)((uintptr_t)p + (uintptr_t)bytes); }

/* --- the record --------------------------------------------------------------------------------------------------------- */

#define SPOIL(name, ...)                                                                                               \
    static void name(fastce_problem *q) {                                                                              \
        (void)q;                                                                                                       \
        __VA_ARGS__;                                                                                                   \
    }

SPOIL(no_logits, q->logits.data = NULL)
SPOIL(no_strides, q->logits.strides = NULL)
SPOIL(askew_strides, q->target.strides = moved(w.columns, 1))
SPOIL(no_shape, q->shape = NULL)
SPOIL(askew_shape, q->shape = moved(w.shape, 4))
SPOIL(no_target, q->target.data = NULL)
SPOIL(no_out, q->out.data = NULL)
SPOIL(no_values, q->row_values = NULL)
SPOIL(no_statistics, q->statistics = NULL)
SPOIL(askew_statistics, q->statistics = moved(&w.statistics, 1))
SPOIL(askew_rank, w.statistics.rank = moved(w.rank, 4))
SPOIL(askew_maximum, w.statistics.maximum = moved(w.values, 1))
SPOIL(askew_rest, w.statistics.rest = moved(w.values, 2))
SPOIL(askew_values, q->row_values = moved(w.values, 2))
SPOIL(askew_class_weight, q->class_weight = moved(w.class_weight, 4))
SPOIL(askew_class_vector, q->class_vector = moved(w.class_vector, 4))
SPOIL(integer_logits, q->logits.dtype = FASTCE_I32)
SPOIL(unknown_logits, q->logits.dtype = FASTCE_DTYPE_COUNT)
SPOIL(unknown_logits_of_no_rows, w.shape[0] = 0; q->logits.data = NULL; q->logits.dtype = (fastce_dtype)56)
SPOIL(unknown_dtype_of_nothing, q->out = (fastce_array){.dtype = (fastce_dtype)64})
SPOIL(floating_labels, q->target.dtype = FASTCE_F32)
SPOIL(boolean_labels, q->target.dtype = FASTCE_BOOL)
SPOIL(unknown_target, q->target.dtype = (fastce_dtype)-1)
SPOIL(unknown_weight, q->sample_weight.dtype = (fastce_dtype)99)
SPOIL(unknown_grad_output, q->grad_output.dtype = (fastce_dtype)99)
SPOIL(integer_out, q->out.dtype = FASTCE_I8)
SPOIL(out_of_a_loss, q->out = rows_of(w.out))
SPOIL(unknown_output, q->output = FASTCE_OUTPUT_COUNT)
SPOIL(negative_output, q->output = (fastce_output)-1)
SPOIL(unknown_target_kind, q->target_kind = FASTCE_TARGET_COUNT)
SPOIL(gradient_of_nothing, q->target_kind = FASTCE_NO_TARGET)
SPOIL(softmax_of_labels, q->target_kind = FASTCE_LABELS; q->target = column_of(w.labels, FASTCE_I32))
SPOIL(statistics_of_dense, q->target_kind = FASTCE_DENSE; q->target = rows_of(w.dense))
SPOIL(unknown_kind, q->kind = FASTCE_KIND_COUNT)
SPOIL(negative_kind, q->kind = (fastce_kind)-1)
SPOIL(factor_of_logits, q->factor = column_of(w.sample_weight, FASTCE_F32))
SPOIL(softmax_of_probabilities, q->kind = FASTCE_PROBABILITIES)
SPOIL(divergence_from_labels, q->kind = FASTCE_KL; q->output = FASTCE_LOSS)
SPOIL(gradient_of_divergence, q->kind = FASTCE_JS; q->target_kind = FASTCE_DENSE; q->target = rows_of(w.dense))
SPOIL(binary_of_classes, q->kind = FASTCE_BINARY_LOGITS; q->target_kind = FASTCE_DENSE; q->target = rows_of(w.dense))
SPOIL(cold_teacher, q->kind = FASTCE_TEACHER; q->target_kind = FASTCE_DENSE; q->target = rows_of(w.dense);
      q->temperature = 0)
SPOIL(integer_teacher, q->kind = FASTCE_TEACHER; q->target_kind = FASTCE_DENSE; q->target = rows_of(w.dense);
      q->target.dtype = FASTCE_I32)
SPOIL(cold_logits, q->temperature = -1)
SPOIL(logits_at_nan, q->temperature = NAN)
SPOIL(focal, q->gamma = 2)
SPOIL(negative_focus, q->gamma = -1)
SPOIL(focus_of_nan, q->gamma = NAN)
SPOIL(endless_focus, q->gamma = INFINITY)
SPOIL(focus_with_z_loss, q->gamma = 2; q->z_loss = 1)
SPOIL(focus_at_temperature, q->gamma = 2; q->temperature = 2)
SPOIL(focus_with_vector, q->gamma = 2; q->class_vector = w.class_vector)
SPOIL(focus_of_masses, q->gamma = 2; q->target_kind = FASTCE_DENSE)
SPOIL(hot_logits, q->temperature = INFINITY)
SPOIL(negative_softcap, q->softcap = -30)
SPOIL(softcap_of_nan, q->softcap = NAN)
SPOIL(no_softcap, q->softcap = INFINITY)
SPOIL(softmax_with_softcap, q->softcap = 30)
SPOIL(softmax_of_lists, make_sparse(q))
SPOIL(lists_of_probabilities, make_sparse(q); q->kind = FASTCE_PROBABILITIES)
SPOIL(no_probabilities, make_sparse(q); q->probabilities.data = NULL)
SPOIL(no_indices, make_sparse(q); q->target.data = NULL)
SPOIL(no_strides_of_probabilities, make_sparse(q); q->probabilities.strides = NULL)
SPOIL(floating_indices, make_sparse(q); q->target.dtype = FASTCE_F64)
SPOIL(boolean_indices, make_sparse(q); q->target.dtype = FASTCE_BOOL)
SPOIL(unknown_probabilities, make_sparse(q); q->probabilities.dtype = FASTCE_DTYPE_COUNT)
SPOIL(negative_listed, make_sparse(q); q->n_listed = -1)
SPOIL(too_many_listed, make_sparse(q); q->n_listed = (int64_t)1 << 31)
SPOIL(indices_overflow, make_sparse(q); q->target.class_stride = PTRDIFF_MAX)
SPOIL(probabilities_overflow, make_sparse(q); q->n_listed = 3; q->probabilities.class_stride = PTRDIFF_MIN)
SPOIL(out_over_indices, make_sparse(q); q->out.data = &w.listed[ROWS - 1][1])
SPOIL(out_over_probabilities, make_sparse(q); q->out.data = moved(w.probabilities, 4 - (ptrdiff_t)sizeof w.out))
SPOIL(negative_axes, q->n_axes = -1)
SPOIL(many_axes, q->n_axes = 65)
SPOIL(negative_classes, q->n_classes = -1)
SPOIL(no_classes, q->n_classes = 0)
SPOIL(too_many_classes, q->n_classes = INT64_MAX; q->logits.class_stride = 0; q->out.class_stride = 0)
SPOIL(negative_length, w.shape[0] = -1)
SPOIL(negative_length_among_none, w.shape[0] = 0; w.shape[1] = -1)
SPOIL(too_many_rows, w.shape[0] = INT64_MAX / 2)
SPOIL(rows_beyond_counting, w.shape[0] = INT64_MAX / 4; w.rows[0] = w.columns[0] = 0; q->row_values = NULL)
SPOIL(rows_beyond_memory, w.shape[0] = INT64_MAX / 8; w.rows[0] = w.columns[0] = 0)
SPOIL(stride_overflows, w.rows[0] = PTRDIFF_MAX; w.shape[0] = 4)
SPOIL(negative_stride_overflows, w.rows[1] = PTRDIFF_MIN)
SPOIL(class_stride_overflows, q->logits.class_stride = PTRDIFF_MAX / 2)
SPOIL(sum_of_strides_overflows, w.rows[0] = w.rows[1] = PTRDIFF_MAX / 2; q->logits.class_stride = PTRDIFF_MAX / 8)
SPOIL(below_zero, w.rows[0] = PTRDIFF_MIN / 2; q->logits.class_stride = PTRDIFF_MIN / 8)
SPOIL(target_stride_overflows, w.many[0] = PTRDIFF_MIN; w.many[1] = 4; q->target.strides = w.many)
SPOIL(out_in_one_place, w.many[0] = w.many[1] = 0; q->out.strides = w.many)
SPOIL(out_classes_in_one_place, q->out.class_stride = 0)
SPOIL(out_rows_in_one_another, w.many[0] = 20; w.many[1] = 8; q->out.strides = w.many)
SPOIL(out_over_logits, q->out.data = &w.logits[0][1])
SPOIL(out_over_logits_turned, q->out.data = &w.logits[0][CLASSES - 1]; q->out.class_stride = -4)
SPOIL(out_over_logits_of_another_dtype, q->out.data = w.logits; q->out.dtype = FASTCE_BF16; q->out.class_stride = 2)
SPOIL(out_over_labels, q->out.data = moved(w.labels, -(ptrdiff_t)sizeof w.out + 4))
SPOIL(out_over_class_weight, q->out.data = moved(w.class_weight, -(ptrdiff_t)sizeof w.out + 1))
SPOIL(values_over_logits, q->row_values = w.logits[2])
SPOIL(values_over_out, q->row_values = w.out[1])
SPOIL(statistics_over_one_another, w.statistics.lse = moved(w.rank, 8))
SPOIL(rest_over_lse, w.statistics.rest = moved(w.lse, 4))
SPOIL(maximum_over_logits, w.statistics.maximum = w.logits)

static const struct {
    const char *name;
    void (*spoil)(fastce_problem *q);
    fastce_output output;
    fastce_status status;
} records[] = {
    {"no logits", no_logits, FASTCE_GRAD, FASTCE_BAD_POINTER},
    {"no strides", no_strides, FASTCE_LSE, FASTCE_BAD_POINTER},
    {"strides askew", askew_strides, FASTCE_LOSS, FASTCE_BAD_POINTER},
    {"no shape", no_shape, FASTCE_SOFTMAX, FASTCE_BAD_POINTER},
    {"shape askew", askew_shape, FASTCE_SOFTMAX, FASTCE_BAD_POINTER},
    {"no target", no_target, FASTCE_GRAD, FASTCE_BAD_POINTER},
    {"no out", no_out, FASTCE_GRAD, FASTCE_BAD_POINTER},
    {"no out of softmax", no_out, FASTCE_LOG_SOFTMAX, FASTCE_BAD_POINTER},
    {"no values", no_values, FASTCE_LSE, FASTCE_BAD_POINTER},
    {"no statistics", no_statistics, FASTCE_STATISTICS, FASTCE_BAD_POINTER},
    {"statistics askew", askew_statistics, FASTCE_STATISTICS, FASTCE_BAD_POINTER},
    {"rank askew", askew_rank, FASTCE_STATISTICS, FASTCE_BAD_POINTER},
    {"maximum askew", askew_maximum, FASTCE_STATISTICS, FASTCE_BAD_POINTER},
    {"rest askew", askew_rest, FASTCE_STATISTICS, FASTCE_BAD_POINTER},
    {"values askew", askew_values, FASTCE_LOSS, FASTCE_BAD_POINTER},
    {"class weight askew", askew_class_weight, FASTCE_LOSS, FASTCE_BAD_POINTER},
    {"class vector askew", askew_class_vector, FASTCE_GRAD, FASTCE_BAD_POINTER},
    {"integer logits", integer_logits, FASTCE_GRAD, FASTCE_BAD_DTYPE},
    {"unknown dtype of logits", unknown_logits, FASTCE_LSE, FASTCE_BAD_DTYPE},
    {"unknown dtype of no rows", unknown_logits_of_no_rows, FASTCE_LOSS, FASTCE_BAD_DTYPE},
    {"unknown dtype of nothing", unknown_dtype_of_nothing, FASTCE_LOSS, FASTCE_BAD_DTYPE},
    {"floating labels", floating_labels, FASTCE_GRAD, FASTCE_BAD_DTYPE},
    {"boolean labels", boolean_labels, FASTCE_STATISTICS, FASTCE_BAD_DTYPE},
    {"unknown dtype of target", unknown_target, FASTCE_LOSS, FASTCE_BAD_DTYPE},
    {"unknown dtype of sample weight", unknown_weight, FASTCE_GRAD, FASTCE_BAD_DTYPE},
    {"unknown dtype of grad_output", unknown_grad_output, FASTCE_GRAD, FASTCE_BAD_DTYPE},
    {"integer out", integer_out, FASTCE_SOFTMAX, FASTCE_BAD_DTYPE},
    {"integer teacher", integer_teacher, FASTCE_GRAD, FASTCE_BAD_DTYPE},
    {"out of a loss", out_of_a_loss, FASTCE_LOSS, FASTCE_BAD_ARGUMENT},
    {"out of an lse", out_of_a_loss, FASTCE_LSE, FASTCE_BAD_ARGUMENT},
    {"unknown output", unknown_output, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"negative output", negative_output, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"unknown kind of target", unknown_target_kind, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"gradient of no target", gradient_of_nothing, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"softmax of labels", softmax_of_labels, FASTCE_SOFTMAX, FASTCE_BAD_ARGUMENT},
    {"statistics of a dense target", statistics_of_dense, FASTCE_STATISTICS, FASTCE_BAD_ARGUMENT},
    {"unknown kind", unknown_kind, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"negative kind", negative_kind, FASTCE_LOSS, FASTCE_BAD_ARGUMENT},
    {"factor of logits", factor_of_logits, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"softmax of probabilities", softmax_of_probabilities, FASTCE_SOFTMAX, FASTCE_BAD_ARGUMENT},
    {"divergence from labels", divergence_from_labels, FASTCE_LOSS, FASTCE_BAD_ARGUMENT},
    {"gradient of a divergence", gradient_of_divergence, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"binary loss of classes", binary_of_classes, FASTCE_GRAD, FASTCE_BAD_SIZE},
    {"a teacher at temperature 0", cold_teacher, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"a focal loss of softmax", focal, FASTCE_LSE, FASTCE_BAD_ARGUMENT},
    {"a negative gamma", negative_focus, FASTCE_LOSS, FASTCE_BAD_ARGUMENT},
    {"a gamma of NaN", focus_of_nan, FASTCE_LOSS, FASTCE_BAD_ARGUMENT},
    {"an infinite gamma", endless_focus, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"gamma and z-loss", focus_with_z_loss, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"gamma and a temperature", focus_at_temperature, FASTCE_LOSS, FASTCE_BAD_ARGUMENT},
    {"gamma and a class vector", focus_with_vector, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"gamma of a dense target", focus_of_masses, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"a negative temperature", cold_logits, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"a temperature of NaN", logits_at_nan, FASTCE_LOSS, FASTCE_BAD_ARGUMENT},
    {"an infinite temperature", hot_logits, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"a temperature of softmax", hot_logits, FASTCE_SOFTMAX, FASTCE_BAD_ARGUMENT},
    {"a negative softcap", negative_softcap, FASTCE_LOSS, FASTCE_BAD_ARGUMENT},
    {"a softcap of NaN", softcap_of_nan, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"an infinite softcap", no_softcap, FASTCE_GRAD, FASTCE_BAD_ARGUMENT},
    {"a softcap of softmax", softmax_with_softcap, FASTCE_SOFTMAX, FASTCE_BAD_ARGUMENT},
    {"a softcap of statistics", softmax_with_softcap, FASTCE_STATISTICS, FASTCE_BAD_ARGUMENT},
    {"softmax of lists", softmax_of_lists, FASTCE_SOFTMAX, FASTCE_BAD_ARGUMENT},
    {"statistics of lists", softmax_of_lists, FASTCE_STATISTICS, FASTCE_BAD_ARGUMENT},
    {"lists of probabilities", lists_of_probabilities, FASTCE_LOSS, FASTCE_BAD_ARGUMENT},
    {"no probabilities", no_probabilities, FASTCE_LOSS, FASTCE_BAD_POINTER},
    {"no indices", no_indices, FASTCE_GRAD, FASTCE_BAD_POINTER},
    {"no strides of probabilities", no_strides_of_probabilities, FASTCE_GRAD, FASTCE_BAD_POINTER},
    {"floating indices", floating_indices, FASTCE_LOSS, FASTCE_BAD_DTYPE},
    {"boolean indices", boolean_indices, FASTCE_GRAD, FASTCE_BAD_DTYPE},
    {"unknown dtype of probabilities", unknown_probabilities, FASTCE_GRAD, FASTCE_BAD_DTYPE},
    {"negative length of lists", negative_listed, FASTCE_LOSS, FASTCE_BAD_SIZE},
    {"too long lists", too_many_listed, FASTCE_GRAD, FASTCE_BAD_SIZE},
    {"a stride of indices that overflows", indices_overflow, FASTCE_GRAD, FASTCE_BAD_STRIDE},
    {"a stride of probabilities that overflows", probabilities_overflow, FASTCE_LOSS, FASTCE_BAD_STRIDE},
    {"out over indices", out_over_indices, FASTCE_GRAD, FASTCE_BAD_OVERLAP},
    {"out over probabilities", out_over_probabilities, FASTCE_GRAD, FASTCE_BAD_OVERLAP},
    {"negative number of axes", negative_axes, FASTCE_GRAD, FASTCE_BAD_SIZE},
    {"too many axes", many_axes, FASTCE_GRAD, FASTCE_BAD_SIZE},
    {"negative number of classes", negative_classes, FASTCE_LSE, FASTCE_BAD_SIZE},
    {"no classes", no_classes, FASTCE_GRAD, FASTCE_BAD_SIZE},
    {"too many classes", too_many_classes, FASTCE_LSE, FASTCE_BAD_SIZE},
    {"negative length", negative_length, FASTCE_GRAD, FASTCE_BAD_SIZE},
    {"negative length among none", negative_length_among_none, FASTCE_GRAD, FASTCE_BAD_SIZE},
    {"more rows than int64 holds", too_many_rows, FASTCE_GRAD, FASTCE_BAD_SIZE},
    {"more rows than are counted", rows_beyond_counting, FASTCE_LOSS, FASTCE_BAD_SIZE},
    {"more row values than memory holds", rows_beyond_memory, FASTCE_LSE, FASTCE_BAD_SIZE},
    {"a stride that overflows", stride_overflows, FASTCE_LOSS, FASTCE_BAD_STRIDE},
    {"a negative stride that overflows", negative_stride_overflows, FASTCE_GRAD, FASTCE_BAD_STRIDE},
    {"a class stride that overflows", class_stride_overflows, FASTCE_LSE, FASTCE_BAD_STRIDE},
    {"strides that overflow together", sum_of_strides_overflows, FASTCE_LSE, FASTCE_BAD_STRIDE},
    {"below address zero", below_zero, FASTCE_LSE, FASTCE_BAD_STRIDE},
    {"a stride of labels that overflows", target_stride_overflows, FASTCE_GRAD, FASTCE_BAD_STRIDE},
    {"out in one place", out_in_one_place, FASTCE_GRAD, FASTCE_BAD_STRIDE},
    {"classes of out in one place", out_classes_in_one_place, FASTCE_SOFTMAX, FASTCE_BAD_STRIDE},
    {"rows of out in one another", out_rows_in_one_another, FASTCE_GRAD, FASTCE_BAD_STRIDE},
    {"out over logits", out_over_logits, FASTCE_SOFTMAX, FASTCE_BAD_OVERLAP},
    {"out over logits the other way round", out_over_logits_turned, FASTCE_GRAD, FASTCE_BAD_OVERLAP},
    {"out over logits of another dtype", out_over_logits_of_another_dtype, FASTCE_GRAD, FASTCE_BAD_OVERLAP},
    {"out over labels", out_over_labels, FASTCE_GRAD, FASTCE_BAD_OVERLAP},
    {"out over class weights", out_over_class_weight, FASTCE_GRAD, FASTCE_BAD_OVERLAP},
    {"values over logits", values_over_logits, FASTCE_LOSS, FASTCE_BAD_OVERLAP},
    {"values over out", values_over_out, FASTCE_GRAD, FASTCE_BAD_OVERLAP},
    {"rest over lse", rest_over_lse, FASTCE_STATISTICS, FASTCE_BAD_OVERLAP},
    {"maximum over logits", maximum_over_logits, FASTCE_STATISTICS, FASTCE_BAD_OVERLAP},
    {"statistics over one another", statistics_over_one_another, FASTCE_STATISTICS, FASTCE_BAD_OVERLAP},
};

static void check_record(const char *name, void (*spoil)(fastce_problem *), fastce_output output,
                         fastce_status status) {
    fastce_totals totals;
    make_world(output);
    spoil(&w.problem);
    as_it_was = w;
    for (int run = 0; run < 2; run++) {
        memset(&totals, 0x5a, sizeof totals);
        fastce_status got = run ? fastce_run(&w.problem, NULL, 2, &totals) : fastce_scan(&w.problem, 2, &totals);
        check(got == status, "%s, %s: %s", name, run ? "run" : "scan", fastce_status_message(got));
        check(totals.bad_row == -1 && totals.loss == 0 && totals.weight == 0, "%s: totals", name);
        check(!memcmp(&w, &as_it_was, sizeof w), "%s: something was written", name);
    }
    check(!strcmp(fastce_kernel_name(&w.problem), "none"), "%s: has a kernel", name);
}

static void test_records(void) {
    for (size_t i = 0; i < sizeof records / sizeof *records; i++)
        check_record(records[i].name, records[i].spoil, records[i].output, records[i].status);
    fastce_totals totals;
    for (fastce_output output = 0; output < FASTCE_OUTPUT_COUNT; output++) {
        make_world(output);
        as_it_was = w;
        check(fastce_run(&w.problem, NULL, 1, NULL) == FASTCE_BAD_POINTER, "run without totals");
        check(fastce_run(&w.problem, NULL, 1, moved(&totals, 1)) == FASTCE_BAD_POINTER, "run with totals askew");
        check(fastce_run(&w.problem, "sse9", 1, &totals) == FASTCE_BAD_ISA, "run on an unknown instruction set");
        check(!memcmp(&w, &as_it_was, sizeof w), "something was written");
        check(fastce_run(&w.problem, NULL, 1, &totals) == FASTCE_OK, "the record that is spoiled is good");
    }
    check(fastce_run(NULL, NULL, 1, &totals) == FASTCE_BAD_POINTER, "run of nothing");
    check(fastce_scan(NULL, 1, &totals) == FASTCE_BAD_POINTER, "scan of nothing");
    check(fastce_scan(&w.problem, 1, NULL) == FASTCE_BAD_POINTER, "scan without totals");
    check(fastce_run(moved(&w.problem, 1), NULL, 1, &totals) == FASTCE_BAD_POINTER, "run of a record askew");
    check(!strcmp(fastce_kernel_name(NULL), "none"), "no record has no kernel");
    check(!fastce_cpu_has(NULL) && !fastce_cpu_has("") && !fastce_isa_runs(NULL), "no name is no feature");
}

/* Rows, too: labels, sample weights, dense and sparse targets. */
static void test_bad_rows(void) {
    for (int last = 0; last < 2; last++)
        for (int what = 0; what < 8; what++)
            for (fastce_output output = FASTCE_LOSS; output <= FASTCE_GRAD; output++)
                for (int threads = 1; threads < 3; threads++) {
                    fastce_totals totals;
                    int row = last ? ROWS - 1 : 2;
                    make_world(output);
                    if (what == 0) w.labels[row] = CLASSES;
                    if (what == 1) w.labels[row] = INT32_MIN;
                    if (what == 2) w.sample_weight[row] = NAN;
                    if (what == 3) {
                        w.problem.target_kind = FASTCE_DENSE;
                        w.problem.target = rows_of(w.dense);
                        w.dense[row][CLASSES - 1] = -1;
                    }
                    if (what > 3) make_sparse(&w.problem);
                    if (what == 4) w.listed[row][1] = CLASSES;
                    if (what == 5) w.listed[row][0] = -2;
                    if (what == 6) w.probabilities[row][1] = NAN;
                    if (what == 7) w.problem.spread_missing = 1, w.probabilities[row][0] = 0.875f;
                    as_it_was = w;
                    check(fastce_run(&w.problem, NULL, threads, &totals) == FASTCE_BAD_ROW && totals.bad_row == row,
                          "bad row of kind %d: %lld", what, (long long)totals.bad_row);
                    check(!memcmp(&w, &as_it_was, sizeof w), "bad row of kind %d: something was written", what);
                    w.problem.out.data = w.problem.output == FASTCE_GRAD ? w.problem.logits.data : NULL;
                    as_it_was = w;
                    check(fastce_run(&w.problem, NULL, threads, &totals) == FASTCE_BAD_ROW,
                          "bad row of kind %d, in place", what);
                    check(!memcmp(&w, &as_it_was, sizeof w), "bad row of kind %d, in place: written", what);
                }
}

/* What looks like overlap and is none: arrays between one another's elements, and logits that are overwritten. */
static void test_apart(void) {
    fastce_totals totals;
    static float both[ROWS][2 * CLASSES], want[ROWS][CLASSES];
    make_world(FASTCE_SOFTMAX);
    check(fastce_run(&w.problem, NULL, 1, &totals) == FASTCE_OK, "softmax");
    memcpy(want, w.out, sizeof want);
    for (int between = 0; between < 2; between++) {
        ptrdiff_t strides[2] = {(ptrdiff_t)sizeof both / OUTER, sizeof *both};
        ptrdiff_t step = between ? 2 : 1, first = between ? 1 : CLASSES;
        make_world(FASTCE_SOFTMAX);
        for (int i = 0; i < ROWS; i++)
            for (int k = 0; k < CLASSES; k++) both[i][k * step] = w.logits[i][k], both[i][first + k * step] = 77;
        w.problem.logits = w.problem.out = (fastce_array){both, FASTCE_F32, 0, 4 * step, strides};
        w.problem.out.data = &both[0][first];
        check(fastce_run(&w.problem, NULL, 1, &totals) == FASTCE_OK, "out between the logits, %d", between);
        bool right = true;
        for (int i = 0; i < ROWS; i++)
            for (int k = 0; k < CLASSES; k++)
                right &= both[i][first + k * step] == want[i][k] && both[i][k * step] == w.logits[i][k];
        check(right, "out between the logits, %d: its values", between);
    }
    make_world(FASTCE_SOFTMAX);
    w.problem.out = w.problem.logits;
    check(fastce_run(&w.problem, NULL, 1, &totals) == FASTCE_OK, "in place");
    check(!memcmp(want, w.logits, sizeof want), "in place: its values");
    make_world(FASTCE_GRAD);
    check(fastce_run(&w.problem, NULL, INT_MAX, &totals) == FASTCE_OK, "as many threads as can be asked for");
    check(fastce_run(&w.problem, NULL, INT_MIN, &totals) == FASTCE_OK, "fewer threads than none");
}

/* --- matrices ----------------------------------------------------------------------------------------------------------- */

/* The arguments of any function for matrices. */
typedef struct arguments {
    fastce_matrix logits, target, out;
    fastce_column labels;
    fastce_options *options;
    void *lse;
    fastce_result *result;
} arguments;

typedef enum function {
    LABELS,
    LABELS_GRAD,
    DENSE,
    DENSE_GRAD,
    BINARY,
    BINARY_GRAD,
    SOFTMAX,
    LOG_SOFTMAX,
    LOGSUMEXP,
    FUNCTIONS
} function;

static fastce_result result, result_as_it_was;

static arguments good_arguments(void) {
    make_world(FASTCE_GRAD);
    w.options.losses = w.losses;
    w.options.class_weight = w.class_weight;
    memset(&result, 0x5a, sizeof result);
    result_as_it_was = result;
    return (arguments){
        .logits = fastce_matrix_of(w.logits, FASTCE_F32, ROWS, CLASSES),
        .target = fastce_matrix_of(w.dense, FASTCE_F32, ROWS, CLASSES),
        .out = fastce_matrix_of(w.out, FASTCE_F32, ROWS, CLASSES),
        .labels = fastce_column_of(w.labels, FASTCE_I32),
        .options = &w.options,
        .lse = w.lse,
        .result = &result,
    };
}

static fastce_status call(function f, const arguments *a, int threads) {
    switch (f) {
    case LABELS:
        return fastce_cross_entropy(a->logits, a->labels, a->options, threads, a->result);
    case LABELS_GRAD:
        return fastce_cross_entropy_with_grad(a->logits, a->labels, a->options, a->out, threads, a->result);
    case DENSE:
        return fastce_dense_cross_entropy(a->logits, a->target, a->options, threads, a->result);
    case DENSE_GRAD:
        return fastce_dense_cross_entropy_with_grad(a->logits, a->target, a->options, a->out, threads, a->result);
    case BINARY:
        return fastce_binary_cross_entropy(a->logits, a->target, a->options, threads, a->result);
    case BINARY_GRAD:
        return fastce_binary_cross_entropy_with_grad(a->logits, a->target, a->options, a->out, threads, a->result);
    case SOFTMAX:
        return fastce_softmax(a->logits, a->out, threads);
    case LOG_SOFTMAX:
        return fastce_log_softmax(a->logits, a->out, threads);
    default:
        return fastce_logsumexp(a->logits, a->lse, threads);
    }
}

enum {
    ALL = (1 << FUNCTIONS) - 1,
    WITH_LABELS = 1 << LABELS | 1 << LABELS_GRAD,
    WITH_DENSE = 1 << DENSE | 1 << DENSE_GRAD,
    WITH_BINARY = 1 << BINARY | 1 << BINARY_GRAD,
    WITH_MATRIX = WITH_DENSE | WITH_BINARY,
    LOSSES = WITH_LABELS | WITH_MATRIX,
    GRADS = 1 << LABELS_GRAD | 1 << DENSE_GRAD | 1 << BINARY_GRAD,
    MAPS = 1 << SOFTMAX | 1 << LOG_SOFTMAX,
    WITH_OUT = GRADS | MAPS,
};

#define SPOIL_CALL(name, ...)                                                                                          \
    static void name(arguments *a) {                                                                                   \
        (void)a;                                                                                                       \
        __VA_ARGS__;                                                                                                   \
    }

SPOIL_CALL(null_logits, a->logits.data = NULL)
SPOIL_CALL(null_labels, a->labels.data = NULL)
SPOIL_CALL(null_dense, a->target.data = NULL)
SPOIL_CALL(null_out, a->out.data = NULL)
SPOIL_CALL(null_lse, a->lse = NULL)
SPOIL_CALL(null_result, a->result = NULL)
SPOIL_CALL(askew_result, a->result = moved(&result, 1))
SPOIL_CALL(askew_losses, a->options->losses = moved(w.losses, 1))
SPOIL_CALL(askew_lse, a->lse = moved(w.lse, 1))
SPOIL_CALL(askew_weights, a->options->class_weight = moved(w.class_weight, 1))
SPOIL_CALL(labels_dtype, a->labels.dtype = FASTCE_F64)
SPOIL_CALL(logits_dtype, a->logits.dtype = FASTCE_U8)
SPOIL_CALL(unknown_dtype, a->logits.dtype = (fastce_dtype)-7)
SPOIL_CALL(dense_dtype, a->target.dtype = FASTCE_DTYPE_COUNT)
SPOIL_CALL(out_dtype, a->out.dtype = FASTCE_I64)
SPOIL_CALL(weight_dtype, a->options->sample_weight = (fastce_column){w.sample_weight, (fastce_dtype)50, 4})
SPOIL_CALL(negative_rows, a->logits.n_rows = a->target.n_rows = a->out.n_rows = -1)
SPOIL_CALL(negative_columns, a->logits.n_classes = a->target.n_classes = a->out.n_classes = -1)
SPOIL_CALL(no_columns, a->logits.n_classes = a->target.n_classes = a->out.n_classes = 0)
SPOIL_CALL(endless_rows, a->logits.n_rows = a->target.n_rows = a->out.n_rows = INT64_MAX)
SPOIL_CALL(endless_columns, a->logits.n_classes = a->target.n_classes = a->out.n_classes = INT64_MAX;
           a->logits.class_stride = 0; a->options->class_weight = NULL)
SPOIL_CALL(other_dense, a->target.n_rows--)
SPOIL_CALL(other_out, a->out.n_classes++)
SPOIL_CALL(far_rows, a->logits.row_stride = PTRDIFF_MIN)
SPOIL_CALL(far_classes, a->logits.class_stride = PTRDIFF_MAX)
SPOIL_CALL(far_labels, a->labels.stride = PTRDIFF_MAX)
SPOIL_CALL(far_dense, a->target.row_stride = PTRDIFF_MAX / 3)
SPOIL_CALL(still_out, a->out.row_stride = 0)
SPOIL_CALL(out_on_logits, a->out.data = &w.logits[1][2])
SPOIL_CALL(out_on_dense, a->out.data = w.dense)
SPOIL_CALL(losses_on_logits, a->options->losses = w.logits)
SPOIL_CALL(lse_on_logits, a->lse = w.logits)
SPOIL_CALL(reduction, a->options->reduction = FASTCE_REDUCTION_COUNT)
SPOIL_CALL(denominator, a->options->denominator = -1)
SPOIL_CALL(denominator_of_sum, a->options->denominator = 2; a->options->reduction = FASTCE_SUM)
SPOIL_CALL(endless_denominator, a->options->denominator = INFINITY)
SPOIL_CALL(much_smoothing, a->options->label_smoothing = 1.5)
SPOIL_CALL(nan_smoothing, a->options->label_smoothing = NAN)
SPOIL_CALL(negative_z_loss, a->options->z_loss = -1)
SPOIL_CALL(endless_z_loss, a->options->z_loss = INFINITY)
SPOIL_CALL(some_z_loss, a->options->z_loss = 1)
SPOIL_CALL(positive_weights, a->options->pos_weight = w.class_weight)
SPOIL_CALL(ignored_dense, a->options->has_ignore_index = 1)
SPOIL_CALL(negative_weight, w.class_weight[CLASSES - 1] = -1)
SPOIL_CALL(nan_weight, w.class_weight[0] = NAN)
SPOIL_CALL(bad_label, w.labels[ROWS - 1] = CLASSES)
SPOIL_CALL(bad_dense, w.dense[ROWS - 1][0] = -1)
SPOIL_CALL(much_dense, w.dense[ROWS - 1][0] = 1.5f)
SPOIL_CALL(bad_weight, w.sample_weight[ROWS - 1] = -1;
           a->options->sample_weight = fastce_column_of(w.sample_weight, FASTCE_F32))

static const struct {
    const char *name;
    void (*spoil)(arguments *);
    int functions;
    fastce_status status;
} calls[] = {
    {"no logits", null_logits, ALL, FASTCE_BAD_POINTER},
    {"no labels", null_labels, WITH_LABELS, FASTCE_BAD_POINTER},
    {"no dense target", null_dense, WITH_MATRIX, FASTCE_BAD_POINTER},
    {"no out", null_out, WITH_OUT, FASTCE_BAD_POINTER},
    {"no lse", null_lse, 1 << LOGSUMEXP, FASTCE_BAD_POINTER},
    {"no result", null_result, LOSSES, FASTCE_BAD_POINTER},
    {"result askew", askew_result, LOSSES, FASTCE_BAD_POINTER},
    {"losses askew", askew_losses, LOSSES, FASTCE_BAD_POINTER},
    {"lse askew", askew_lse, 1 << LOGSUMEXP, FASTCE_BAD_POINTER},
    {"class weights askew", askew_weights, LOSSES, FASTCE_BAD_POINTER},
    {"dtype of labels", labels_dtype, WITH_LABELS, FASTCE_BAD_DTYPE},
    {"dtype of logits", logits_dtype, ALL, FASTCE_BAD_DTYPE},
    {"unknown dtype", unknown_dtype, ALL, FASTCE_BAD_DTYPE},
    {"dtype of a dense target", dense_dtype, WITH_MATRIX, FASTCE_BAD_DTYPE},
    {"dtype of out", out_dtype, WITH_OUT, FASTCE_BAD_DTYPE},
    {"dtype of sample weights", weight_dtype, LOSSES, FASTCE_BAD_DTYPE},
    {"negative rows", negative_rows, ALL, FASTCE_BAD_SIZE},
    {"negative classes", negative_columns, ALL, FASTCE_BAD_SIZE},
    {"no classes", no_columns, ALL, FASTCE_BAD_SIZE},
    {"endless rows", endless_rows, ALL, FASTCE_BAD_SIZE},
    {"endless classes", endless_columns, ALL, FASTCE_BAD_SIZE},
    {"another shape of target", other_dense, WITH_MATRIX, FASTCE_BAD_SIZE},
    {"another shape of out", other_out, WITH_OUT, FASTCE_BAD_SIZE},
    {"rows too far apart", far_rows, ALL, FASTCE_BAD_STRIDE},
    {"classes too far apart", far_classes, ALL, FASTCE_BAD_STRIDE},
    {"labels too far apart", far_labels, WITH_LABELS, FASTCE_BAD_STRIDE},
    {"targets too far apart", far_dense, WITH_MATRIX, FASTCE_BAD_STRIDE},
    {"out in one place", still_out, WITH_OUT, FASTCE_BAD_STRIDE},
    {"out over logits", out_on_logits, WITH_OUT, FASTCE_BAD_OVERLAP},
    {"out over the target", out_on_dense, 1 << DENSE_GRAD | 1 << BINARY_GRAD, FASTCE_BAD_OVERLAP},
    {"losses over logits", losses_on_logits, LOSSES, FASTCE_BAD_OVERLAP},
    {"lse over logits", lse_on_logits, 1 << LOGSUMEXP, FASTCE_BAD_OVERLAP},
    {"unknown reduction", reduction, LOSSES, FASTCE_BAD_ARGUMENT},
    {"negative denominator", denominator, LOSSES, FASTCE_BAD_ARGUMENT},
    {"denominator of a sum", denominator_of_sum, LOSSES, FASTCE_BAD_ARGUMENT},
    {"infinite denominator", endless_denominator, LOSSES, FASTCE_BAD_ARGUMENT},
    {"too much smoothing", much_smoothing, LOSSES, FASTCE_BAD_ARGUMENT},
    {"smoothing NaN", nan_smoothing, LOSSES, FASTCE_BAD_ARGUMENT},
    {"negative z-loss", negative_z_loss, LOSSES, FASTCE_BAD_ARGUMENT},
    {"infinite z-loss", endless_z_loss, LOSSES, FASTCE_BAD_ARGUMENT},
    {"z-loss of a binary loss", some_z_loss, WITH_BINARY, FASTCE_BAD_ARGUMENT},
    {"positive weights", positive_weights, LOSSES & ~WITH_BINARY, FASTCE_BAD_ARGUMENT},
    {"ignore_index of a dense target", ignored_dense, WITH_MATRIX, FASTCE_BAD_ARGUMENT},
    {"negative class weight", negative_weight, LOSSES, FASTCE_BAD_ARGUMENT},
    {"class weight NaN", nan_weight, LOSSES, FASTCE_BAD_ARGUMENT},
    {"bad label", bad_label, WITH_LABELS, FASTCE_BAD_ROW},
    {"bad dense target", bad_dense, WITH_MATRIX, FASTCE_BAD_ROW},
    {"dense target above 1", much_dense, WITH_BINARY, FASTCE_BAD_ROW},
    {"bad sample weight", bad_weight, LOSSES, FASTCE_BAD_ROW},
};

static void test_calls(void) {
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        for (function f = 0; f < FUNCTIONS; f++) {
            if (!(calls[i].functions >> f & 1)) continue;
            arguments a = good_arguments();
            calls[i].spoil(&a);
            as_it_was = w;
            if (calls[i].status == FASTCE_BAD_ROW) result_as_it_was.bad_row = ROWS - 1;
            fastce_status got = call(f, &a, 2);
            check(got == calls[i].status, "%s, function %d: %s", calls[i].name, f, fastce_status_message(got));
            check(!memcmp(&w, &as_it_was, sizeof w), "%s, function %d: something was written", calls[i].name, f);
            check(!memcmp(&result, &result_as_it_was, sizeof result), "%s, function %d: the result", calls[i].name, f);
        }
    for (function f = 0; f < FUNCTIONS; f++) {
        arguments a = good_arguments();
        check(call(f, &a, 2) == FASTCE_OK, "the arguments that are spoiled are good, function %d", f);
        a.logits = a.target = a.out = fastce_matrix_of(NULL, FASTCE_F32, 0, CLASSES);
        a.labels = fastce_column_of(NULL, FASTCE_I32);
        a.lse = NULL;
        check(call(f, &a, 2) == FASTCE_OK && (!(LOSSES >> f & 1) || (isnan(result.loss) && result.bad_row == -1)),
              "no rows, function %d", f);
    }
}

/* What a matrix function gives is what the record of the same call gives. */
static void test_values(void) {
    fastce_totals totals;
    arguments a = good_arguments();
    check(call(LABELS_GRAD, &a, 1) == FASTCE_OK, "cross entropy of a matrix");
    static float got[ROWS][CLASSES];
    fastce_result from_matrix = result;
    memcpy(got, w.out, sizeof got);
    make_world(FASTCE_GRAD);
    w.problem.sample_weight.data = w.problem.grad_output.data = NULL;
    w.problem.class_vector = NULL;
    w.problem.grad_scale = 1 / from_matrix.denominator;
    check(fastce_run(&w.problem, NULL, 1, &totals) == FASTCE_OK, "cross entropy of the record");
    check(totals.loss / totals.weight == from_matrix.loss && totals.weight == from_matrix.denominator, "the same mean");
    check(!memcmp(got, w.out, sizeof got), "the same gradient");

    /* Two logits and one label by hand: log(1 + exp(-1)) with label smoothing 0.5, then the pair as a binary loss. */
    double x[1][2] = {{1, 0}}, t[1][2] = {{1, 0}}, losses[2], soft = log1p(exp(-1.0));
    int8_t label = 0;
    fastce_options options = {.label_smoothing = 0.5, .losses = losses};
    fastce_matrix logits = fastce_matrix_of(x, FASTCE_F64, 1, 2), target = fastce_matrix_of(t, FASTCE_F64, 1, 2);
    check(fastce_cross_entropy(logits, fastce_column_of(&label, FASTCE_I8), &options, 1, &result) == FASTCE_OK &&
              fabs(result.loss - (soft + 0.25)) < 1e-15 && losses[0] == result.loss,
          "label smoothing: %.17g", result.loss);
    options.label_smoothing = 0;
    options.reduction = FASTCE_SUM;
    check(fastce_binary_cross_entropy(logits, target, &options, 1, &result) == FASTCE_OK &&
              fabs(result.loss - (soft + log(2))) < 1e-15 && fabs(losses[0] - soft) < 1e-16,
          "binary cross entropy: %.17g", result.loss);
    check(result.denominator == 1 && result.bad_row == -1, "of a sum");
}

int main(void) {
    test_records();
    test_bad_rows();
    test_apart();
    test_calls();
    test_values();
    return report();
}

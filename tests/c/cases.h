/* Kinds of target, and problems of each: numbers that every dtype holds, so that one answer serves all. */
#ifndef CASES_H
#define CASES_H

#include "arrays.h"

typedef struct option {
    const char *name;
    fastce_target target_kind;
    fastce_dtype target_dtype;
    bool class_weight, class_vector, sample_weight, ignored, scaled;
    double target_scale, z_loss;
    double temperature, softcap, gamma;
    bool spread_missing;
} option;

#define EVERYTHING                                                                                                     \
    .class_weight = true, .class_vector = true, .sample_weight = true, .scaled = true, .target_scale = 0.9,            \
    .z_loss = 0x1p-10
static const option options[] = {
    {"labels", FASTCE_LABELS, FASTCE_I64, .target_scale = 1},
    {"scaled gradient", FASTCE_LABELS, FASTCE_I32, .scaled = true, .target_scale = 1},
    {"class weights", FASTCE_LABELS, FASTCE_U16, .class_weight = true, .target_scale = 1},
    {"smoothing", FASTCE_LABELS, FASTCE_I16, .class_vector = true, .target_scale = 0.9},
    {"sample weights", FASTCE_LABELS, FASTCE_U32, .sample_weight = true, .target_scale = 1},
    {"ignored rows", FASTCE_LABELS, FASTCE_I64, .ignored = true, .target_scale = 1},
    {"z-loss", FASTCE_LABELS, FASTCE_I64, .z_loss = 0x1p-10, .target_scale = 1},
    {"labels with everything", FASTCE_LABELS, FASTCE_U64, EVERYTHING, .ignored = true},
    {"dense", FASTCE_DENSE, FASTCE_F32, .target_scale = 1},
    {"one-hot", FASTCE_DENSE, FASTCE_BOOL, .target_scale = 1},
    {"dense integers", FASTCE_DENSE, FASTCE_U8, .class_weight = true, .target_scale = 1},
    {"dense with everything", FASTCE_DENSE, FASTCE_F64, EVERYTHING, .ignored = false},
    {"temperature", FASTCE_LABELS, FASTCE_I32, .target_scale = 1, .temperature = 2},
    {"temperature with everything", FASTCE_LABELS, FASTCE_I64, EVERYTHING, .ignored = true, .temperature = 2},
    {"softcap", FASTCE_LABELS, FASTCE_I64, .ignored = true, .target_scale = 1, .softcap = 8},
    {"softcap of a dense target", FASTCE_DENSE, FASTCE_F32, .scaled = true, .target_scale = 1, .softcap = 8,
     .temperature = 2},
    {"lists", FASTCE_SPARSE, FASTCE_I32, .target_scale = 1},
    {"lists with everything", FASTCE_SPARSE, FASTCE_I16, EVERYTHING, .ignored = false, .temperature = 2,
     .spread_missing = true},
    {"focal", FASTCE_LABELS, FASTCE_I32, .target_scale = 1, .gamma = 2},
    {"focal with weights", FASTCE_LABELS, FASTCE_I64, .class_weight = true, .sample_weight = true, .ignored = true,
     .scaled = true, .target_scale = 0.75, .gamma = 0.3},
};
enum { OPTIONS = sizeof options / sizeof *options };

/* Logits on a grid that float16, bfloat16 and all their differences hold: rows near 0, wide rows, rows whose label is
 * the maximum, and rows whose label is 80 below it. */
static inline void fill_logits(inputs *in, int64_t row) {
    int64_t classes = in->n_classes, label = in->labels ? in->labels[row] : 0, top = random_below(classes);
    double *x = in->x + row * classes;
    for (int64_t k = 0; k < classes; k++) x[k] = (double)(random_below(511) - 255) * (row % 4 == 1 ? 0.125 : 0x1p-6);
    if (label < 0 || label >= classes) return;
    if (row % 4 == 2) x[label] = 4;
    if (row % 4 == 3) x[top] = 40, x[label] = -40;
}

/* Lists with duplicates and padding; a row's masses are 5/8 at most together. */
static inline void fill_lists(inputs *in) {
    int64_t n = in->n_rows, classes = in->n_classes, length = in->n_listed = 5;
    in->listed = allocate(n * length, sizeof(double));
    in->probabilities = allocate(n * length, sizeof(double));
    in->dense = allocate(n * classes, sizeof(double));
    bool *there = allocate(classes, sizeof *there);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0, *dense = in->dense + i * classes;
        int64_t others = classes;
        memset(there, 0, (size_t)classes * sizeof *there);
        for (int64_t j = 0; j < length; j++) {
            int64_t k = random_below(4) == 0 ? -1 : random_below(classes);
            double mass = (double)random_below(5) / 32;
            in->listed[i * length + j] = (double)k;
            in->probabilities[i * length + j] = mass;
            if (k < 0) continue;
            dense[k] += mass, sum += mass, others -= !there[k];
            there[k] = true;
        }
        for (int64_t k = 0; k < classes && in->spread_missing; k++)
            if (!there[k]) dense[k] = (1 - sum) / (double)others;
    }
    free(there);
}

static inline inputs make_inputs(const option *o, int64_t outer, int64_t inner, int64_t classes) {
    inputs in = new_inputs(outer, inner, classes);
    int64_t n = in.n_rows;
    in.target_kind = o->target_kind;
    in.target_dtype = o->target_dtype;
    in.target_scale = o->target_scale;
    in.z_loss = o->z_loss;
    in.temperature = o->temperature;
    in.softcap = o->softcap;
    in.gamma = o->gamma;
    in.spread_missing = o->spread_missing;
    in.ignore_index = o->target_dtype == FASTCE_U64 ? -5 : -100; /* for unsigned labels 2^64 - 5 */
    in.has_ignore_index = o->ignored;
    if (o->scaled) {
        in.grad_scale = 0.375;
        in.grad_output = allocate(n, sizeof(double));
        for (int64_t i = 0; i < n; i++) in.grad_output[i] = (double)(random_below(9) - 4) / 2;
    }
    if (o->sample_weight) {
        in.sample_weight = allocate(n, sizeof(double));
        for (int64_t i = 0; i < n; i++) in.sample_weight[i] = (double)random_below(6) / 4;
    }
    if (o->class_weight) {
        in.class_weight = allocate(classes, sizeof(double));
        for (int64_t k = 0; k < classes; k++) in.class_weight[k] = (double)random_below(33) / 16;
    }
    if (o->class_vector) {
        in.class_vector = allocate(classes, sizeof(double));
        for (int64_t k = 0; k < classes; k++) in.class_vector[k] = (double)random_below(17) / 1024;
    }
    if (o->target_kind == FASTCE_LABELS) {
        in.labels = allocate(n, sizeof *in.labels);
        for (int64_t i = 0; i < n; i++)
            in.labels[i] = o->ignored && random_below(3) == 0 ? in.ignore_index : random_below(classes);
    } else if (o->target_kind == FASTCE_SPARSE) {
        fill_lists(&in);
    } else {
        in.dense = allocate(n * classes, sizeof(double));
        for (int64_t i = 0; i < n * classes; i++) {
            if (o->target_dtype == FASTCE_U8) in.dense[i] = (double)random_below(4);
            if (dtype_is_floating(o->target_dtype)) in.dense[i] = fmax(0, (double)(random_below(48) - 31) / 16);
        }
        if (o->target_dtype == FASTCE_BOOL)
            for (int64_t i = 0; i < n; i++) in.dense[i * classes + random_below(classes)] = 1;
    }
    for (int64_t i = 0; i < n; i++) fill_logits(&in, i);
    return in;
}

#endif

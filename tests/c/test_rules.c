/* The rules beside plain accuracy: what is refused and how, rows that are ignored or not finite, layouts, and what must
 * not change a bit (threads, batch, alignment, layout). */
#include "cases.h"
#include "compare.h"

#include "../../src_c/core.h"

static const option *const plain = &options[0];

/* Not inlined: gcc 12 would compare the names at compile time, and warn of what it thinks it knows. */
__attribute__((noinline)) static const option *option_named(const char *name) {
    for (int o = 0; o < OPTIONS; o++)
        if (!strcmp(options[o].name, name)) return &options[o];
    printf("no option %s\n", name);
    exit(2);
}

/* Runs a problem in both layouts on every instruction set in the dtypes that hold its numbers. */
static void check_everywhere(const inputs *in, const char *name) {
    answer a = solve(in);
    for (int d = 0; d < LOGITS_DTYPES; d++) {
        fastce_dtype dtype = logits_dtypes[d];
        bool holds = true;
        for (int64_t i = 0; i < in->n_rows * in->n_classes; i++) {
            char stored[8];
            store_floating(stored, in->x[i], dtype, false);
            double back = load_number(stored, dtype, false);
            holds &= back == in->x[i] || in->x[i] != in->x[i];
        }
        for (const char *const *isa = running_isas(); *isa && holds; isa++) {
            way rows = way_of(*isa, dtype, rows_layout), image = way_of(*isa, dtype, image_layout);
            if (in->target_kind != FASTCE_NO_TARGET) check_target(in, &a, &rows, name);
            if (in->target_kind != FASTCE_NO_TARGET) check_target(in, &a, &image, name);
            check_functions(in, &a, &rows, name);
            check_functions(in, &a, &image, name);
        }
    }
    free_answer(&a);
}

/* --- the header's own promises ---------------------------------------------------------------------------------------- */

static void test_names(void) {
#if !defined(FASTCE_ISAS) /* where the build has not chosen */
#if defined(__x86_64__)
    static const char *const expected[] = {"avx512", "avx2", "portable", NULL};
#elif defined(__aarch64__)
    static const char *const expected[] = {"neon", "portable", NULL};
#else
    static const char *const expected[] = {"portable", NULL};
#endif
    const char *const *names = fastce_isa_names();
    int i = 0;
    for (; expected[i] && names[i] && !strcmp(expected[i], names[i]); i++) {
    }
    check(!expected[i] && !names[i], "the list of instruction sets, at %d", i);
    check(fastce_isa_runs("portable"), "portable runs");
#if defined(__aarch64__)
    check(fastce_isa_runs("neon"), "neon runs");
#endif
#endif
    check(!fastce_isa_runs("sse9") && !fastce_isa_runs("") && !fastce_isa_runs("AVX2") && !fastce_isa_runs(NULL),
          "an unknown instruction set does not run");
    check(fastce_abi_version() == FASTCE_ABI_VERSION, "ABI version");
    check(fastce_has_openmp() == 0 || fastce_has_openmp() == 1, "has_openmp");
    for (int s = 0; s < FASTCE_STATUS_COUNT; s++) {
        const char *message = fastce_status_message((fastce_status)s);
        check(message && *message, "message of status %d", s);
        for (int t = 0; t < s; t++)
            check(strcmp(message, fastce_status_message((fastce_status)t)) != 0, "messages %d and %d differ", s, t);
    }
    check(*fastce_status_message(FASTCE_STATUS_COUNT) && *fastce_status_message((fastce_status)99),
          "message of an unknown status");
}

/* The name of an instruction set chooses its kernels; no name chooses the best. */
static void test_isa_names(void) {
    inputs in = make_inputs(plain, 2, 3, 5);
    way w = way_of(NULL, FASTCE_F32, rows_layout);
    call c;
    fastce_totals totals;
    prepare(&c, &in, FASTCE_GRAD, &w);
    for (const char *const *isa = fastce_isa_names(); *isa; isa++)
        check(fastce_run(&c.problem, *isa, 1, &totals) == (fastce_isa_runs(*isa) ? FASTCE_OK : FASTCE_BAD_ISA),
              "%s by name", *isa);
    check(strcmp(fastce_kernel_name(&c.problem), "none") != 0, "the kernel has a name");

    outputs best = run(&in, FASTCE_GRAD, &w);
    w.isa = running_isas()[0];
    outputs named = run(&in, FASTCE_GRAD, &w);
    check(same_outputs(&in, FASTCE_GRAD, &best, &named), "no name is the best one");
    free_outputs(&best);
    free_outputs(&named);
    free_inputs(&in);
}

/* No rows, with and without classes; no axes, which is one row; an axis for each that may be. */
static void test_shapes(void) {
    float x[4] = {0, 1, 2, 3}, out[4] = {7, 7, 7, 7}, value = 7;
    uint8_t label = 1;
    static int64_t shape[64];
    static ptrdiff_t strides[64];
    fastce_problem q = {
        .output = FASTCE_GRAD,
        .target_kind = FASTCE_LABELS,
        .shape = shape,
        .n_classes = 4,
        .logits = {.data = x, .dtype = FASTCE_F32, .class_stride = 4, .strides = strides},
        .target = {.data = &label, .dtype = FASTCE_U8, .strides = strides},
        .out = {.data = out, .dtype = FASTCE_F32, .class_stride = 4, .strides = strides},
        .target_scale = 1,
        .grad_scale = 1,
        .row_values = &value,
    };
    fastce_totals totals;
    for (int axes = 1; axes < 3; axes++) {
        shape[0] = axes == 1 ? 0 : 5;
        shape[1] = 0;
        q.n_axes = axes;
        for (q.n_classes = 0; q.n_classes <= 4; q.n_classes += 4)
            check(fastce_run(&q, NULL, 1, &totals) == FASTCE_OK && fastce_scan(&q, 1, &totals) == FASTCE_OK &&
                      totals.bad_row == -1 && totals.loss == 0 && totals.weight == 0 && value == 7 && out[0] == 7,
                  "no rows, %d axes, %d classes", axes, (int)q.n_classes);
    }
    q.n_classes = 4;
    float first = 0;
    for (int i = 0; i < 64; i++) shape[i] = 1;
    for (int axes = 0; axes <= 64; axes += 64) {
        q.n_axes = axes;
        check(fastce_run(&q, NULL, 2, &totals) == FASTCE_OK && totals.weight == 1, "one row, %d axes", axes);
        check(fabs((double)value - 2.4401897) < 1e-6 && totals.loss == (double)value, "its loss, %d axes", axes);
        check(fabs((double)out[1] + 0.9128556) < 1e-6, "its gradient, %d axes", axes);
        if (axes == 0) first = value;
    }
    check(first == value, "axes of length 1 change nothing");
}

/* --- bad rows --------------------------------------------------------------------------------------------------------- */

/* Every function names the same first bad row, in C order whatever the layout, and scan writes nothing. */
static void check_bad_row(const inputs *in, int64_t row, const char *name) {
    static const layout layouts[] = {{.order = "abk"}, {.order = "akb"}, {.order = "baK"}, {.order = "kBA"}};
    for (int l = 0; l < 4; l++)
        for (const char *const *isa = running_isas(); *isa; isa++)
            for (int threads = 1; threads <= 2; threads++) {
                way w = way_of(*isa, FASTCE_F32, layouts[l]);
                call c;
                fastce_totals totals;
                prepare(&c, in, FASTCE_GRAD, &w);
                check(fastce_scan(&c.problem, threads, &totals) == FASTCE_BAD_ROW && totals.bad_row == row,
                      "%s, scan %s: row %lld, not %lld", name, w.logits.order, (long long)totals.bad_row,
                      (long long)row);
                bool written = false;
                for (size_t b = 0; b < c.out.span_size; b++) written |= (unsigned char)c.out.span[b] != UNTOUCHED;
                for (int64_t b = 0; b < in->n_rows * 4; b++) written |= (unsigned char)c.values[b] != UNTOUCHED;
                check(!written, "%s: scan wrote", name);
                for (fastce_output output = FASTCE_LOSS; output <= FASTCE_GRAD; output++) {
                    prepare(&c, in, output, &w);
                    check(fastce_run(&c.problem, *isa, threads, &totals) == FASTCE_BAD_ROW && totals.bad_row == row,
                          "%s, %s %s: row %lld, not %lld", name, *isa, w.logits.order, (long long)totals.bad_row,
                          (long long)row);
                }
            }
}

static void test_bad_labels(void) {
    static const int64_t bad[] = {5, -1, -101, INT32_MAX, INT64_MIN, INT64_MAX};
    inputs in = make_inputs(option_named("ignored rows"), 2, 67, 5);
    in.sample_weight = allocate(in.n_rows, sizeof(double));
    for (int64_t i = 0; i < in.n_rows; i++) in.sample_weight[i] = 1;
    for (int i = 0; i < 6; i++) {
        int64_t rows[] = {0, 66, 67, 133}, saved[4];
        for (int j = 3; j >= 0; j--) {
            saved[j] = in.labels[rows[j]];
            in.labels[rows[j]] = bad[i];
            check_bad_row(&in, rows[j], "bad label");
        }
        for (int j = 0; j < 4; j++) in.labels[rows[j]] = saved[j];
    }
    /* Where the sample weight is 0 as well, and beside a bad sample weight. */
    in.labels[70] = 5;
    in.sample_weight[70] = 0;
    check_bad_row(&in, 70, "bad label of an ignored row");
    in.sample_weight[71] = -1;
    check_bad_row(&in, 70, "bad label before a bad weight");
    in.sample_weight[69] = NAN;
    check_bad_row(&in, 69, "bad weight before a bad label");
    in.sample_weight[3] = INFINITY;
    check_bad_row(&in, 3, "infinite weight");
    in.sample_weight[2] = -0x1p-149;
    check_bad_row(&in, 2, "negative weight");
    free_inputs(&in);

    /* Labels are compared by value, not by their bits. */
    static const struct {
        fastce_dtype dtype;
        int64_t label, ignore_index;
        bool has_ignore_index, good;
    } cases[] = {
        {FASTCE_U8, -100, -100, true, false},  {FASTCE_I8, -100, -100, true, true},
        {FASTCE_U16, -100, -100, true, false}, {FASTCE_U32, -100, -100, true, false},
        {FASTCE_U64, -5, -5, true, true},      {FASTCE_U64, INT64_MIN, -5, true, false},
        {FASTCE_I64, -100, 0, false, false},   {FASTCE_I64, -1, -1, true, true},
        {FASTCE_I16, -1, -100, true, false},   {FASTCE_I32, 2, 2, true, true},
        {FASTCE_U8, 255, 255, true, true},     {FASTCE_U8, 5, 255, true, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        in = make_inputs(plain, 1, 7, 5);
        for (int64_t j = 0; j < 7; j++) in.labels[j] = 1;
        in.target_dtype = cases[i].dtype;
        in.labels[4] = cases[i].label;
        in.has_ignore_index = cases[i].has_ignore_index;
        in.ignore_index = cases[i].ignore_index;
        if (cases[i].good)
            check_everywhere(&in, "ignored by value");
        else
            check_bad_row(&in, 4, "not ignored by value");
        free_inputs(&in);
    }
}

static void test_bad_dense(void) {
    static const double bad[] = {-1, -0x1p-149, NAN, INFINITY, -INFINITY};
    static const int64_t class_counts[] = {5, 40};
    for (int c = 0; c < 2; c++) {
        int64_t classes = class_counts[c];
        inputs in = make_inputs(option_named("dense"), 2, 67, classes);
        in.sample_weight = allocate(in.n_rows, sizeof(double));
        for (int64_t i = 0; i < in.n_rows; i++) in.sample_weight[i] = 1;
        for (int i = 0; i < 5; i++) {
            int64_t rows[] = {0, 66, 67, 133};
            double saved[4];
            for (int j = 3; j >= 0; j--) {
                int64_t at = rows[j] * classes + (j % 2 ? classes - 1 : i % classes);
                saved[j] = in.dense[at];
                in.dense[at] = bad[i];
                check_bad_row(&in, rows[j], "bad dense target");
            }
            for (int j = 0; j < 4; j++) in.dense[rows[j] * classes + (j % 2 ? classes - 1 : i % classes)] = saved[j];
        }
        in.dense[70 * classes + 2] = -1;
        in.sample_weight[70] = 0;
        check_bad_row(&in, 70, "bad target of an ignored row");
        in.sample_weight[71] = -1;
        check_bad_row(&in, 70, "bad target before a bad weight");
        in.sample_weight[69] = -1;
        check_bad_row(&in, 69, "bad weight before a bad target");
        in.dense[10 * classes] = NAN;
        check_bad_row(&in, 10, "bad target of an earlier row");
        in.target_dtype = FASTCE_I8;
        in.dense[10 * classes] = -1;
        check_bad_row(&in, 10, "negative integer target");
        free_inputs(&in);
    }
}

/* The first of many chunks of rows that has a bad one, whichever thread is first. */
static void test_bad_row_of_many(void) {
    int64_t n = 50000;
    inputs in = make_inputs(plain, 1, n, 3);
    in.labels[n - 1] = in.labels[30001] = in.labels[30000] = -1;
    check_bad_row(&in, 30000, "one of many rows");
    free_inputs(&in);
}

/* --- rows that are special ---------------------------------------------------------------------------------------------- */

/* An ignored row's logits are not looked at; the gradient is exactly 0 there. */
static void test_ignored_rows(void) {
    static const int64_t class_counts[] = {1, 5, 40};
    for (int c = 0; c < 3; c++)
        for (int share = 1; share <= 3; share++) { /* one row of 8, half of them, all but one of 8 */
            inputs in = make_inputs(option_named("labels with everything"), 2, 67, class_counts[c]);
            in.has_ignore_index = true;
            in.ignore_index = -5;
            for (int64_t i = 0; i < in.n_rows; i++) {
                int64_t r = random_below(8);
                bool ignored = share == 1 ? r == 0 : share == 2 ? r < 4 : r > 0;
                in.sample_weight[i] = ignored && r % 2 ? 0 : 1.25;
                in.labels[i] = ignored && r % 2 == 0 ? -5 : random_below(class_counts[c]);
                for (int64_t k = 0; k < class_counts[c] && ignored; k++)
                    in.x[i * class_counts[c] + k] = k % 2 ? (double)INFINITY : (double)NAN;
            }
            check_everywhere(&in, "ignored rows of NaN");
            free(in.labels);
            in.labels = NULL;
            in.target_kind = FASTCE_DENSE;
            in.target_dtype = FASTCE_U8;
            in.dense = allocate(in.n_rows * in.n_classes, sizeof(double));
            for (int64_t i = 0; i < in.n_rows * in.n_classes; i++) {
                in.dense[i] = (double)random_below(3);
                if (in.x[i] - in.x[i] != 0) in.sample_weight[i / in.n_classes] = 0;
            }
            check_everywhere(&in, "ignored dense rows of NaN");
            free_inputs(&in);
        }
}

/* A special logit at every single position, one row each, beside rows that stay what they are. */
static void test_special_logits(void) {
    static const double specials[] = {NAN, INFINITY, -INFINITY};
    static const int64_t class_counts[] = {1, 2, 5, 33, 67};
    static const char *const names[] = {"labels", "class weights", "smoothing", "z-loss", "dense", "one-hot"};
    for (int c = 0; c < 5; c++)
        for (int s = 0; s < 3; s++)
            for (int o = 0; o < 6; o++) {
                int64_t classes = class_counts[c];
                if (classes > 33 && o % 2) continue;
                inputs in = make_inputs(option_named(names[o]), 1, classes + 3, classes);
                for (int64_t i = 0; i < classes; i++) in.x[i * classes + i] = specials[s];
                for (int64_t k = 0; k < classes; k++) in.x[classes * classes + k] = -INFINITY;
                if (classes > 1) in.x[(classes + 1) * classes] = NAN, in.x[(classes + 1) * classes + 1] = INFINITY;
                check_everywhere(&in, "special logits");
                free_inputs(&in);
            }
}

/* The maximum at each position while all else is far below; at two positions; and with nothing else there. */
static void test_maximum_positions(void) {
    static const int64_t class_counts[] = {4, 19, 35, 67, 2052};
    for (int c = 0; c < 5; c++) {
        int64_t classes = class_counts[c];
        for (int twice = 0; twice < 2; twice++) {
            int64_t n = classes > 100 || twice ? 4 : classes;
            inputs in = make_inputs(twice ? option_named("z-loss") : plain, 1, n, classes);
            for (int64_t i = 0; i < n; i++) {
                int64_t at = n == classes ? i : classes - n + i;
                for (int64_t k = 0; k < classes; k++) in.x[i * classes + k] = -32768;
                in.x[i * classes + at] = -1024;
                if (twice) in.x[i * classes + random_below(classes)] = -1024;
                if (i % 2) in.labels[i] = at;
            }
            check_everywhere(&in, twice ? "the maximum twice" : "the maximum at one position");
            for (int64_t i = 0; i < n * classes; i++)
                if (in.x[i] == -32768) in.x[i] = twice ? -1e9 : (double)-INFINITY;
            check_everywhere(&in, twice ? "one beside a mask of -1e9" : "one beside a mask of -inf");
            free_inputs(&in);
        }
    }
}

/* Rows far from 0: exp overflows or vanishes, differences do not. */
static void test_offsets(void) {
    static const double offsets[] = {96, 712, -10240, -0x1p100, 0x1p100};
    static const char *const names[] = {"labels", "smoothing", "dense"};
    static const int64_t class_counts[] = {7, 70};
    for (int i = 0; i < 5; i++)
        for (int o = 0; o < 3; o++)
            for (int c = 0; c < 2; c++) {
                inputs in = make_inputs(option_named(names[o]), 2, 3, class_counts[c]);
                for (int64_t j = 0; j < in.n_rows * in.n_classes; j++) {
                    double step = offsets[i] == -10240 ? 64 : 0.5;
                    in.x[j] = offsets[i] + (double)(random_below(17) - 8) * step;
                    if (fabs(offsets[i]) > 1e6) in.x[j] = offsets[i] * (random_below(4) ? 1 : 2);
                }
                check_everywhere(&in, "rows far from 0");
                free_inputs(&in);
            }

    /* A constant that is added without rounding changes no bit of what depends on differences alone. */
    inputs in = make_inputs(option_named("dense with everything"), 2, 3, 70);
    inputs moved = in;
    in.z_loss = moved.z_loss = 0;
    moved.x = allocate(in.n_rows * in.n_classes, sizeof(double));
    for (int64_t j = 0; j < in.n_rows * in.n_classes; j++) moved.x[j] = in.x[j] + 4096;
    for (const char *const *isa = running_isas(); *isa; isa++)
        for (int d = 2; d < LOGITS_DTYPES; d++)
            for (fastce_output output = FASTCE_LOSS; output <= FASTCE_LOG_SOFTMAX; output++) {
                way w = way_of(*isa, logits_dtypes[d], rows_layout);
                if (output == FASTCE_LSE) continue;
                outputs here = run(&in, output, &w), there = run(&moved, output, &w);
                bool right = all_same(here.values, there.values, in.n_rows);
                if (has_out(output)) right &= all_same(here.out, there.out, in.n_rows * in.n_classes);
                check(right, "%s", describe("offset", "rows", &in, &w));
                free_outputs(&here);
                free_outputs(&there);
            }
    free(moved.x);
    free_inputs(&in);
}

/* log1p(exp(-gap)): small losses and their gradients keep their digits. */
static void test_small_losses(void) {
    enum { ROWS = 80 };
    for (int64_t classes = 2; classes <= 40; classes += 38) {
        inputs in = make_inputs(plain, 1, ROWS, classes), far = make_inputs(plain, 1, ROWS, classes);
        for (int64_t i = 0; i < ROWS; i++) {
            in.labels[i] = far.labels[i] = i % 2 ? classes - 1 : 0;
            for (int64_t k = 0; k < classes; k++) {
                in.x[i * classes + k] = k == in.labels[i] ? (double)i + 1 : 0;
                far.x[i * classes + k] = k == in.labels[i] ? 8.5 * (double)(i + 1) : 0;
            }
        }
        check_everywhere(&in, "small losses");
        answer a = solve(&far);
        for (const char *const *isa = running_isas(); *isa; isa++) {
            way rows = way_of(*isa, FASTCE_F64, rows_layout), image = way_of(*isa, FASTCE_F64, image_layout);
            check_target(&far, &a, &rows, "smaller losses");
            check_target(&far, &a, &image, "smaller losses");
        }
        free_answer(&a);
        free_inputs(&in);
        free_inputs(&far);
    }
}

/* --- what must not change a bit ----------------------------------------------------------------------------------------- */

static const char *const thorough[] = {"labels", "labels with everything", "dense with everything"};
enum { THOROUGH = sizeof thorough / sizeof *thorough };

/* Layouts of the logits, and of the output, by the kernel that they get: classes that are neighbours in memory, or not. */
static const layout neighbours[] = {
    {.order = "abk"},
    {.order = "abk", .shift = 1},
    {.order = "abk", .shift = 2, .at_start = true},
    {.order = "abk", .swapped = true},
    {.order = "bak", .at_start = true},
    {.order = "ABk"},
    {.order = "aBk", .swapped = true, .shift = 3},
};
static const layout strided[] = {
    {.order = "akb"},
    {.order = "akb", .shift = 1},
    {.order = "kab", .at_start = true},
    {.order = "kba"},
    {.order = "abK"},
    {.order = "abk", .gap = 1},
    {.order = "AKB"},
    {.order = "bka", .swapped = true, .shift = 3, .at_start = true},
    {.order = "kab", .gap = 2, .swapped = true},
};

static void check_layouts(const inputs *in, const char *name, const way *base, const layout *layouts, int count) {
    for (fastce_output output = FASTCE_LOSS; output <= FASTCE_LOG_SOFTMAX; output++) {
        outputs expected = run(in, output, base);
        for (int l = 0; l < count; l++)
            for (int turn = 0; turn < 3; turn++) {
                way w = *base;
                w.logits = layouts[l];
                w.out = turn == 0 ? layouts[l] : turn == 1 ? strided[(l + 3) % 9] : neighbours[(l + 2) % 7];
                w.in_place = turn == 2 && has_out(output);
                outputs o = run(in, output, &w);
                check(all_same(o.values, expected.values, in->n_rows), "%s, layout %d",
                      describe("values", name, in, &w), l);
                if (has_out(output))
                    check(all_same(o.out, expected.out, in->n_rows * in->n_classes), "%s, layout %d.%d",
                          describe("out", name, in, &w), l, turn);
                check(o.stayed_inside || w.in_place, "%s, layout %d.%d", describe("other bytes", name, in, &w), l,
                      turn);
                free_outputs(&o);
            }
        free_outputs(&expected);
    }
}

static void test_layouts(void) {
    static const int64_t class_counts[] = {5, 33, 70};
    for (int c = 0; c < 3; c++)
        for (int o = 0; o < THOROUGH; o++) {
            inputs in = make_inputs(option_named(thorough[o]), 2, class_counts[c] > 32 ? 5 : 67, class_counts[c]);
            for (int d = 0; d < LOGITS_DTYPES; d++)
                for (const char *const *isa = running_isas(); *isa; isa++) {
                    bool few = class_counts[c] <= 32;
                    way base = way_of(*isa, logits_dtypes[d], neighbours[0]);
                    check_layouts(&in, thorough[o], &base, neighbours, sizeof neighbours / sizeof *neighbours);
                    if (!few) base.logits = base.out = strided[0];
                    check_layouts(&in, thorough[o], &base, strided, sizeof strided / sizeof *strided);
                }
            free_inputs(&in);
        }
}

static inputs one_row(const inputs *in, int64_t row) {
    inputs one = *in;
    int64_t classes = in->n_classes;
    one.shape[0] = one.shape[1] = one.n_rows = 1;
    one.x = in->x + row * classes;
    if (in->labels) one.labels = in->labels + row;
    if (in->dense) one.dense = in->dense + row * classes;
    if (in->sample_weight) one.sample_weight = in->sample_weight + row;
    if (in->grad_output) one.grad_output = in->grad_output + row;
    return one;
}

static void test_rows_alone(void) {
    static const int64_t class_counts[] = {1, 5, 32, 33, 70, 2049};
    for (int c = 0; c < 6; c++)
        for (int o = 0; o < THOROUGH; o++) {
            int64_t classes = class_counts[c], inner = classes > 100 ? 2 : 66;
            inputs in = make_inputs(option_named(thorough[o]), 2, inner, classes);
            for (int d = 0; d < LOGITS_DTYPES; d++)
                for (const char *const *isa = running_isas(); *isa; isa++)
                    for (fastce_output output = FASTCE_GRAD; output <= FASTCE_LOG_SOFTMAX; output++)
                        for (int l = 0; l < 2; l++) {
                            way w = way_of(*isa, logits_dtypes[d], l ? strided[0] : neighbours[0]);
                            if (output != FASTCE_GRAD && o > 0) continue;
                            outputs all = run(&in, output, &w);
                            if (l) w.logits = (layout){.order = "abk", .gap = 1}; /* strided for one row too */
                            bool right = true;
                            for (int64_t i = 0; i < in.n_rows; i += inner / 2 - 1 ? inner / 2 - 1 : 1) {
                                inputs one = one_row(&in, i);
                                outputs alone = run(&one, output, &w);
                                right &= same(alone.values[0], all.values[i]);
                                if (has_out(output)) right &= all_same(alone.out, all.out + i * classes, classes);
                                free_outputs(&alone);
                            }
                            check(right, "%s", describe("a row alone", thorough[o], &in, &w));
                            free_outputs(&all);
                        }
            free_inputs(&in);
        }
}

/* More rows than one unit of scheduling, so that two threads have work. */
static void test_threads(void) {
    static const struct {
        int64_t rows, classes;
    } sizes[] = {{22000, 3}, {34, 2049}};
    for (int s = 0; s < 2; s++)
        for (int o = 0; o < THOROUGH; o++) {
            inputs in = make_inputs(option_named(thorough[o]), 2, sizes[s].rows / 2, sizes[s].classes);
            for (const char *const *isa = running_isas(); *isa; isa++)
                for (int d = 2; d < LOGITS_DTYPES; d++) {
                    way w = way_of(*isa, logits_dtypes[d], rows_layout);
                    outputs one = run(&in, FASTCE_GRAD, &w);
                    w.num_threads = 2;
                    outputs two = run(&in, FASTCE_GRAD, &w);
                    w.num_threads = 0; /* as good as 1 */
                    outputs none = run(&in, FASTCE_LOSS, &w);
                    check(same_outputs(&in, FASTCE_GRAD, &one, &two), "%s",
                          describe("two threads", thorough[o], &in, &w));
                    check(same_outputs(&in, FASTCE_LOSS, &one, &none), "%s",
                          describe("no threads", thorough[o], &in, &w));
                    free_outputs(&one);
                    free_outputs(&two);
                    free_outputs(&none);
                }
            free_inputs(&in);
        }
}

/* Ignored rows one by one and, in the first quarter, more often than not; tiny losses, for sums that round. */
static inputs streamed_inputs(const option *o, int64_t n, int64_t classes) {
    inputs in = make_inputs(o, 1, n, classes);
    for (int64_t i = 0; i < n; i++) {
        bool ignored = i < n / 4 && random_below(5) < 3;
        if (ignored && in.has_ignore_index) in.labels[i] = in.ignore_index;
        if (ignored && in.sample_weight) in.sample_weight[i] = 0;
        if (in.labels[i] >= 0 && i % 3 == 0) in.x[i * classes + in.labels[i]] = 64;
    }
    return in;
}

/* An output that is written past the caches has the bits of one that is not, aligned to vectors, to elements or to
 * nothing; and the losses, their sum too, are those without any output. */
static void test_streamed_output(void) {
    enum { STREAMED_BYTES = (1 << 22) + (1 << 18) };
    for (int d = 0; d < LOGITS_DTYPES; d++) {
        int size = dtype_size(logits_dtypes[d]);
        const int64_t class_counts[] = {2051, 300, 37};
        const int shifts[] = {0, size, 1};
        for (int s = 0; s < 3; s++) {
            if (size == 2 && s != 1) continue; /* most elements, and the same code */
            int64_t classes = class_counts[s], n = STREAMED_BYTES / size / classes;
            inputs in = streamed_inputs(option_named(d % 2 ? "sample weights" : "ignored rows"), n, classes);
            for (const char *const *isa = running_isas(); *isa; isa++) {
                way w = way_of(*isa, logits_dtypes[d], rows_layout);
                w.logits.shift = w.out.shift = shifts[s];
                outputs all = run(&in, FASTCE_GRAD, &w), losses = run(&in, FASTCE_LOSS, &w);
                bool right = all.stayed_inside;
                for (int64_t i = 0; i < n; i += n / 30) {
                    inputs one = one_row(&in, i);
                    outputs alone = run(&one, FASTCE_GRAD, &w);
                    right &=
                        same(alone.values[0], all.values[i]) && all_same(alone.out, all.out + i * classes, classes);
                    free_outputs(&alone);
                }
                check(right, "%s, shifted by %d", describe("a streamed output", "many rows", &in, &w), shifts[s]);
                check(same_outputs(&in, FASTCE_LOSS, &all, &losses), "%s: %.17g, not %.17g",
                      describe("losses beside a streamed output", "many rows", &in, &w), all.totals.loss,
                      losses.totals.loss);
                free_outputs(&all);
                free_outputs(&losses);
            }
            free_inputs(&in);
        }
    }
}

/* A row longer than those whose exponentials are kept. */
static void test_long_row(void) {
    static const char *const names[] = {"labels", "dense with everything"};
    for (int o = 0; o < 2; o++) {
        inputs in = make_inputs(option_named(names[o]), 1, 1, KEPT_CLASSES + 1);
        if (in.sample_weight) in.sample_weight[0] = 1.25;
        if (in.grad_output) in.grad_output[0] = 1.5;
        answer a = solve(&in);
        for (const char *const *isa = running_isas(); *isa; isa++) {
            way w = way_of(*isa, o ? FASTCE_F64 : FASTCE_F32, rows_layout);
            check_target(&in, &a, &w, "a long row");
            if (o == 0) check_functions(&in, &a, &w, "a long row");
        }
        free_answer(&a);
        free_inputs(&in);
    }
}

/* Every row in the same place: strides of 0. A million equal losses add up to float64 rounding. */
static void test_broadcast(void) {
    float x[2] = {0.3f, -1.1f}, value = 0;
    uint8_t label = 0;
    int64_t n = 1000001;
    ptrdiff_t zero = 0;
    for (const char *const *isa = running_isas(); *isa; isa++) {
        fastce_problem q = {
            .output = FASTCE_LOSS,
            .target_kind = FASTCE_LABELS,
            .n_axes = 1,
            .shape = &n,
            .n_classes = 2,
            .logits = {.data = x, .dtype = FASTCE_F32, .class_stride = 4, .strides = &zero},
            .target = {.data = &label, .dtype = FASTCE_U8, .strides = &zero},
            .target_scale = 1,
        };
        fastce_totals totals, one;
        check(fastce_run(&q, *isa, 2, &totals) == FASTCE_OK && totals.weight == (double)n, "%s: broadcast", *isa);
        q.n_axes = 0;
        q.row_values = &value;
        check(fastce_run(&q, *isa, 1, &one) == FASTCE_OK && one.loss == (double)value, "%s: one of them", *isa);
        check(totals.loss == (double)n * (double)value, "%s: %.17g, not %.17g", *isa, totals.loss,
              (double)n * (double)value);
    }
}

/* An output of another dtype than the logits': the halves are the roundings of the floats. */
static void test_output_dtypes(void) {
    static const int64_t class_counts[] = {5, 70};
    for (int c = 0; c < 2; c++) {
        inputs in = make_inputs(option_named("labels with everything"), 2, 67, class_counts[c]);
        for (const char *const *isa = running_isas(); *isa; isa++)
            for (int d = 0; d < LOGITS_DTYPES; d++)
                for (int l = 0; l < 2; l++)
                    for (fastce_output output = FASTCE_GRAD; output <= FASTCE_LOG_SOFTMAX; output++) {
                        if (!has_out(output)) continue;
                        way w = way_of(*isa, logits_dtypes[d], l ? image_layout : rows_layout);
                        w.out_dtype = d == 3 ? FASTCE_F64 : FASTCE_F32;
                        outputs wide = run(&in, output, &w);
                        for (int to = 0; to < LOGITS_DTYPES; to++) {
                            w.out_dtype = logits_dtypes[to];
                            outputs o = run(&in, output, &w);
                            bool right = o.status == FASTCE_OK && o.stayed_inside;
                            for (int64_t i = 0; i < in.n_rows * in.n_classes; i++) {
                                char stored[8];
                                store_floating(stored, wide.out[i], w.out_dtype, false);
                                right &= same(o.out[i], load_number(stored, w.out_dtype, false));
                            }
                            check(right, "%s, out in %s", describe("output", "another dtype", &in, &w),
                                  dtype_name(w.out_dtype));
                            free_outputs(&o);
                        }
                        free_outputs(&wide);
                    }
        free_inputs(&in);
    }
}

int main(void) {
    test_names();
    test_isa_names();
    test_shapes();
    test_bad_labels();
    test_bad_dense();
    test_bad_row_of_many();
    test_ignored_rows();
    test_special_logits();
    test_maximum_positions();
    test_offsets();
    test_small_losses();
    test_layouts();
    test_rows_alone();
    test_threads();
    test_streamed_output();
    test_long_row();
    test_broadcast();
    test_output_dtypes();
    return report();
}

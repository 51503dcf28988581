/* Calls from many threads at once, from inside OpenMP regions, in forked children, and with labels that change meanwhile:
 * the same bits as alone, or a bad row. */
#define _DEFAULT_SOURCE
#include "check.h"

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROWS = 5000, CLASSES = 40, CALLERS = 8, CALLS = 4 };

static float logits[ROWS][CLASSES];
static int64_t labels[ROWS];

/* What a call gives: bits of the loss, and a sum over those of the gradient. */
typedef struct answer {
    double loss;
    uint64_t gradient;
} answer;

static answer solve(int num_threads) {
    float *grad = malloc(sizeof logits);
    fastce_result result;
    answer a = {0, 0};
    if (!grad) return a;
    fastce_status status = fastce_cross_entropy_with_grad(
        fastce_matrix_of(logits, FASTCE_F32, ROWS, CLASSES), fastce_column_of(labels, FASTCE_I64), NULL,
        fastce_matrix_of(grad, FASTCE_F32, ROWS, CLASSES), num_threads, &result);
    if (status == FASTCE_OK) a.loss = result.loss;
    for (int i = 0; i < ROWS * CLASSES; i++) {
        uint32_t bits;
        memcpy(&bits, &grad[i], 4);
        a.gradient = a.gradient * 31 + bits;
    }
    free(grad);
    return a;
}

static answer alone;

static bool is_same(answer a) { return a.loss == alone.loss && a.gradient == alone.gradient; }

static void *call_often(void *right) {
    *(bool *)right = true;
    for (int i = 0; i < CALLS; i++) *(bool *)right &= is_same(solve(1 + i % 3));
    return NULL;
}

static void test_callers(void) {
    pthread_t callers[CALLERS];
    bool right[CALLERS];
    for (int i = 0; i < CALLERS; i++)
        if (pthread_create(&callers[i], NULL, call_often, &right[i])) abort();
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(callers[i], NULL);
        check(right[i], "caller %d of many", i);
    }
}

/* Compiled with OpenMP, as a user's program may be. */
static void test_region(void) {
    int wrong = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(4) reduction(+ : wrong)
#endif
    for (int i = 0; i < 8; i++) wrong += !is_same(solve(2));
    check(wrong == 0, "%d calls inside a region", wrong);
}

/* ThreadSanitizer does not follow a fork of a process with threads. */
#if !defined(__SANITIZE_THREAD__)
static void test_fork(void) {
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        _exit(is_same(solve(2)) && is_same(solve(4)) ? 0 : 3);
    }
    int status;
    check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "a forked child: %d",
          status);
    check(is_same(solve(2)), "its parent afterwards");
}

/* A race on purpose, so nothing for ThreadSanitizer. The class weights end at a page that must not be touched, and the
 * logits too: a label that is used without having been checked as it was loaded would reach there. */
static volatile int64_t *changing;
static volatile int stop;

static void *change_labels(void *nothing) {
    static const int64_t values[] = {0, INT64_MAX, CLASSES, INT64_MIN, CLASSES - 1, (int64_t)1 << 40, -1};
    for (unsigned i = 0; !stop; i++) changing[i % ROWS] = values[i / 3 % 7];
    return nothing;
}

static void *before_a_gap(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (size + page - 1) / page * page;
    char *p = mmap(NULL, whole + 1024 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p, whole, PROT_READ | PROT_WRITE)) abort();
    return p + whole - size;
}

static void test_changing_labels(void) {
    float *x = before_a_gap(sizeof logits), *grad = before_a_gap(sizeof logits);
    int64_t *y = before_a_gap(sizeof labels);
    double *weight = before_a_gap(CLASSES * sizeof *weight);
    memcpy(x, logits, sizeof logits);
    memcpy(y, labels, sizeof labels);
    for (int k = 0; k < CLASSES; k++) weight[k] = 1 + k % 3;
    changing = y;
    pthread_t changer;
    if (pthread_create(&changer, NULL, change_labels, NULL)) abort();
    static const fastce_dtype dtypes[] = {FASTCE_I64, FASTCE_U64, FASTCE_I32, FASTCE_I8};
    int other = 0;
    for (int i = 0; i < 400; i++) {
        fastce_options options = {.class_weight = i % 2 ? weight : NULL, .label_smoothing = i % 5 ? 0 : 0.1};
        options.has_ignore_index = i % 3 == 0;
        options.ignore_index = i % 7 ? -1 : 5;
        fastce_result result;
        int64_t classes = i % 4 ? CLASSES : 8;
        fastce_column column = fastce_column_of(y, dtypes[i % 4]);
        column.stride = 8;
        fastce_status status =
            fastce_cross_entropy_with_grad(fastce_matrix_of(x, FASTCE_F32, ROWS, classes), column, &options,
                                           fastce_matrix_of(grad, FASTCE_F32, ROWS, classes), 1 + i % 2, &result);
        other += status != FASTCE_OK && status != FASTCE_BAD_ROW;
    }
    stop = 1;
    pthread_join(changer, NULL);
    check(other == 0, "%d calls with changing labels ended in another way", other);
}
#endif

int main(void) {
    uint64_t state = 1;
    for (int i = 0; i < ROWS; i++) {
        for (int k = 0; k < CLASSES; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            logits[i][k] = (float)(int32_t)(state >> 32) * 0x1p-29f;
        }
        labels[i] = (int64_t)(state >> 40) % CLASSES;
    }
    alone = solve(1);
    check(alone.loss > 0, "a call alone");
    test_callers();
    test_region();
#if !defined(__SANITIZE_THREAD__)
    test_fork();
    test_changing_labels();
#endif
    return report();
}

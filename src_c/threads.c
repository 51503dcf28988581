/* OpenMP, or serial where the compiler has none. A child forked from a process that loaded this library stays serial:
 * the threads of the parent's OpenMP are gone there, and waiting for them would never end. */
#include "threads.h"

#include "fastce.h"

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>

static volatile int forked;

static void note_fork(void) { forked = 1; }

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, note_fork); }

int fastce_has_openmp(void) { return 1; }

/* OpenMP ends the process where it cannot make the threads it is asked for. */
enum { MOST_THREADS = 64 };

int usable_threads(int64_t count, int num_threads) {
    if (forked || num_threads < 2 || count < 2) return 1;
    if (num_threads > MOST_THREADS) {
        int processors = omp_get_num_procs(), most = processors > MOST_THREADS ? processors : MOST_THREADS;
        if (num_threads > most) num_threads = most;
    }
    return count < num_threads ? (int)count : num_threads;
}
#else
int fastce_has_openmp(void) { return 0; }

int usable_threads(int64_t count, int num_threads) {
    (void)count;
    (void)num_threads;
    return 1;
}
#endif

void for_each(int64_t count, int num_threads, void (*work)(void *, int64_t, int), void *context) {
#ifdef _OPENMP
    if (num_threads > 1) {
#pragma omp parallel for num_threads(num_threads) schedule(dynamic)
        for (int64_t i = 0; i < count; i++) work(context, i, omp_get_thread_num());
        return;
    }
#else
    (void)num_threads;
#endif
    for (int64_t i = 0; i < count; i++) work(context, i, 0);
}

/* In place of src_c/threads.c, for ThreadSanitizer: the same seam over plain threads, all of whose synchronisation it sees.
 * OpenMP's own library is not instrumented, and would look like a race wherever it hands work over. */
#include "../../src_c/threads.h"

#include "fastce.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { MOST_THREADS = 16 };

int fastce_has_openmp(void) { return 0; }

int usable_threads(int64_t count, int num_threads) {
    if (num_threads < 2 || count < 2) return 1;
    if (num_threads > MOST_THREADS) num_threads = MOST_THREADS;
    return count < num_threads ? (int)count : num_threads;
}

typedef struct team {
    int64_t count;
    atomic_llong next;
    void (*work)(void *, int64_t, int);
    void *context;
} team;

typedef struct member {
    team *team;
    int number;
    pthread_t thread;
} member;

static void *join_in(void *argument) {
    member *m = argument;
    for (int64_t i; (i = atomic_fetch_add(&m->team->next, 1)) < m->team->count;)
        m->team->work(m->team->context, i, m->number);
    return NULL;
}

void for_each(int64_t count, int num_threads, void (*work)(void *, int64_t, int), void *context) {
    team t = {.count = count, .work = work, .context = context};
    member members[MOST_THREADS];
    for (int i = 0; i < num_threads; i++) {
        members[i] = (member){.team = &t, .number = i};
        if (i > 0 && pthread_create(&members[i].thread, NULL, join_in, &members[i])) abort();
    }
    join_in(&members[0]);
    for (int i = 1; i < num_threads; i++) pthread_join(members[i].thread, NULL);
}

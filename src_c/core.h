/* What the driver (api.c) and the kernels share: a call planned, and a few rows of it.
 * Nothing here depends on an ISA. */
#ifndef FASTCE_CORE_H
#define FASTCE_CORE_H

#include "fastce.h"

#include <stdbool.h>

/* A visit handles up to this many rows at once: enough to fill vectors of rows, few enough to stay in L1. */
enum { VISIT_ROWS = 128 };

/* Of a visit's arrays, one after the other: a vector stored across two lines takes several times as long. */
#define IN_LINES _Alignas(64)

/* Long rows are read in blocks of classes of this many: a block and its exponentials stay in L1. */
enum { BLOCK_CLASSES = 2048 };

/* Rows of up to this many classes go through vectors of rows. */
enum { FEW_CLASSES = 32 };

/* The exponentials of a row are kept for its gradient up to this many classes, and computed again above. */
enum { KEPT_CLASSES = 1 << 18 };

/* The arrays of a problem, in the order in which the driver steps through them. */
enum { LOGITS, TARGET, SAMPLE_WEIGHT, OUT, GRAD_OUTPUT, FACTOR, POSITIVE_WEIGHT, ARRAY_COUNT };

/* A sparse target's probabilities take the place of the factors, which its kind has not. */
enum { BESIDE = FACTOR };

/* A call, planned: constant while it runs. */
typedef struct task {
    const fastce_problem *problem;
    bool needs_max;        /* everything but labels, whose logits serve as maxima, and what is spread evenly */
    bool plain;            /* labels alone, without z-loss */
    bool focal;            /* plain rows, of a focal loss */
    bool lanes;            /* vectors of rows, not rows of vectors */
    bool elements;         /* an element-wise kind */
    bool alike;            /* elements, that differ in nothing but logits and targets */
    bool divided, capped;  /* logits, by a temperature and by a softcap */
    bool staged;           /* visited in scratch, see kernels/staged.h */
    bool any_target;       /* any number is acceptable as a dense target */
    bool every_row;        /* ignored rows are visited too, and passed over there */
    double largest_target; /* a dense target beyond it is not acceptable */
    bool logits_direct;    /* the kernel loads logits where they are */
    bool out_direct;
    bool stream;          /* the output will not stay in cache */
    const void *q_scale;  /* of real: dense targets' target_scale * class_weight; NULL where target_scale alone */
    const void *q_vector; /* of real: class_vector, NULL where 0 */
    double q_vector_sum;
    double even_q; /* of each class, where labels have no more beside their mass, and need no maximum; else 0 */
} task;

/* Rows of one run of positions, whose arrays have constant steps: row i of the visit is row_of(r, i) of the run. weight is
 * 0 where a row is ignored; label is -1 there and where there is none. */
typedef struct rows {
    int64_t count;
    bool consecutive; /* the rows follow first, and index is not filled */
    bool all_kept;    /* no weight is 0 */
    bool uniform;     /* weight is 1 and label_mass is target_scale, as far as any batch of the run goes */
    bool scaled;      /* and grad_scale the problem's */
    int64_t first;
    int64_t first_row; /* of the run, among all */
    const char *logits, *dense, *beside;
    char *out;
    char *values; /* of real, or NULL */
    ptrdiff_t logits_step, dense_step, beside_step, out_step;
    const double *offset; /* of row i, beyond its logits, for z-loss; NULL for none */
    IN_LINES int64_t index[VISIT_ROWS];
    int64_t label[VISIT_ROWS];
    double weight[VISIT_ROWS];     /* s */
    double label_mass[VISIT_ROWS]; /* mass of q on the label beyond the class vector's; s * factor of an element */
    double positive[VISIT_ROWS];   /* positive_weight, where there is one */
    double grad_scale[VISIT_ROWS];
} rows;

static inline int64_t row_of(const rows *r, int64_t i) { return r->consecutive ? r->first + i : r->index[i]; }

/* Sums that a chunk of rows leaves: value and what rounding lost of it. */
typedef struct partial {
    int64_t bad_row;
    double loss, loss_lost;
    double weight, weight_lost;
} partial;

/* Reals on their way out past the caches, in whole lines, while what follows is computed: memory is read and written at
 * once. Of count reals at `from`, sent are gone; each goes to its place from `to` on as factor times itself plus constant,
 * but for the one at label (-1 where there is none) and the first `final`, which go as they are. One field changes on the
 * way: pointers that move together would be stored as a pair, and loading them again would wait for the stores before. */
typedef struct outgoing {
    const void *from;
    char *to;
    int64_t count, sent, label, final;
    double factor, constant, at_label;
    const void *factors; /* of rows of so many classes, at a distance of step; NULL where it is not rows that leave */
    int64_t classes, step;
    uint64_t inverse; /* of classes, times 2^32 */
} outgoing;

/* What the visits of a chunk hand on: its sums, losses lane by lane, those of the last rows apart while their block of
 * VISIT_ROWS is not complete; and what the one before has not sent yet, from one of two buffers of the scratch, while the
 * other fills. */
enum { MOST_LANES = 16 };

typedef struct chunk_state {
    partial total;     /* without loss */
    int64_t first_row; /* of the chunk */
    int64_t block;     /* the one that is open, counted from first_row */
    bool open;
    double loss[MOST_LANES], lost[MOST_LANES];
    double open_loss[MOST_LANES], open_lost[MOST_LANES];
    outgoing outgoing;
    int filling;
} chunk_state;

static inline void add_exactly(double *sum, double *lost, double x) {
    double s = *sum + x, t = s - *sum;
    *lost += (*sum - (s - t)) + (x - t);
    *sum = s;
}

/* Kernels of one ISA and one arithmetic. */
typedef struct kernels {
    /* Visits rows: fills values and out, adds the losses. Returns -1, or i where the dense target of row i of the visit is
     * the first that is not acceptable. scratch has scratch_bytes(task). */
    int64_t (*visit)(const task *t, rows *r, chunk_state *state, char *scratch);
    size_t (*scratch_bytes)(const task *t);
    /* Sends what is still outgoing: after the last visit of a chunk. */
    void (*finish_chunk)(const task *t, chunk_state *state);
    /* Writes zeros past the caches, but for lines that are not whole. */
    void (*stream_zeros)(char *p, ptrdiff_t bytes);
    /* See kernels/targets.h. */
    int64_t (*load_targets)(const task *t, const char *const at[], const ptrdiff_t step[], int64_t count, rows *r,
                            partial *sums);
    int64_t (*first_bad_target)(const task *t, const char *const at[], const ptrdiff_t step[], int64_t count);
} kernels;

#endif

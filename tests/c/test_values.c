/* Every output within its published bound of the oracle, for every instruction set, dtype, kind of target, number of
 * classes around the edges of vectors and blocks, and both kernels. */
#include "cases.h"
#include "compare.h"

/* 67 rows on the inner axis are a full visit and three rows more. */
static const struct {
    int64_t classes, inner;
} sizes[] = {
    {1, 67},  {2, 67},  {3, 67},  {4, 67}, {5, 67}, {7, 5},  {8, 5},  {9, 5},    {15, 5},   {16, 5},   {17, 5},
    {31, 67}, {32, 67}, {33, 67}, {63, 5}, {64, 5}, {65, 5}, {67, 5}, {2047, 2}, {2048, 2}, {2049, 2}, {4097, 2},
};
enum { SIZES = sizeof sizes / sizeof *sizes, MANY = 1024 };

/* Beside the edge of a block the plainest and the fullest kinds of target say what there is to say; of rows that are
 * staged, some numbers of classes on either side of each choice. */
static bool is_worth_it(const option *option, int64_t classes) {
    const bool staged = option->temperature > 0 || option->softcap > 0 || option->target_kind == FASTCE_SPARSE;
    if (staged && classes > 3 && classes != 17 && classes != 32 && classes != 33 && classes != 67 && classes != 2049)
        return false;
    return (classes != 2047 && classes != 2048) || option == options || option->z_loss > 0;
}

static void test_option(const option *option, int64_t classes, int64_t inner) {
    const layout layouts[] = {rows_layout, image_layout};
    inputs in = make_inputs(option, 2, inner, classes);
    answer a = solve(&in);
    for (int d = 0; d < LOGITS_DTYPES; d++)
        for (int l = 0; l < 2; l++) {
            if (l == 1 && classes >= MANY && classes != 2049) continue; /* tiles of a few classes, again */
            for (const char *const *isa = running_isas(); *isa; isa++) {
                way w = way_of(*isa, logits_dtypes[d], layouts[l]);
                check_target(&in, &a, &w, option->name);
                if (option == options) check_functions(&in, &a, &w, option->name);
            }
        }
    free_answer(&a);
    free_inputs(&in);
}

int main(void) {
    for (int i = 0; i < SIZES; i++)
        for (int o = 0; o < OPTIONS; o++)
            if (is_worth_it(&options[o], sizes[i].classes)) test_option(&options[o], sizes[i].classes, sizes[i].inner);
    printf("largest share of its bound: loss %.2f, gradient %.2f, lse %.2f, softmax %.2f, log_softmax %.2f\n",
           worst.loss, worst.grad, worst.lse, worst.softmax, worst.log_softmax);
    return report();
}

#include <math.h>

#include "check.h"
#include "summary.h"

int main(void)
{
    struct summary empty = {0}, one = {0}, many = {0};
    static const double values[] = {2, 4, 4, 4, 5, 5, 7, 9};

    CHECK(summary_count(&empty) == 0 && summary_mean(&empty) == 0 && summary_deviation(&empty) == 0);

    summary_add(&one, -3.5);
    CHECK(summary_min(&one) == -3.5 && summary_max(&one) == -3.5 && summary_deviation(&one) == 0);

    for (unsigned index = 0; index < sizeof values / sizeof *values; index++)
        summary_add(&many, values[index]);
    CHECK(summary_count(&many) == 8 && summary_sum(&many) == 40);
    CHECK(summary_min(&many) == 2 && summary_max(&many) == 9);
    CHECK(fabs(summary_mean(&many) - 5) < 1e-12);
    CHECK(fabs(summary_deviation(&many) - sqrt(32.0 / 7)) < 1e-12);
    return check_end();
}

#include "summary.h"

#include <math.h>

void summary_add(struct summary *summary, double value)
{
    double distance = value - summary->mean;

    if (summary->count == 0 || value < summary->min)
        summary->min = value;
    if (summary->count == 0 || value > summary->max)
        summary->max = value;
    summary->count++;
    summary->sum += value;
    summary->mean += distance / (double)summary->count;
    summary->squares += distance * (value - summary->mean);
}

double summary_count(const struct summary *summary)
{
    return (double)summary->count;
}

double summary_sum(const struct summary *summary)
{
    return summary->sum;
}

double summary_mean(const struct summary *summary)
{
    return summary->mean;
}

double summary_min(const struct summary *summary)
{
    return summary->min;
}

double summary_max(const struct summary *summary)
{
    return summary->max;
}

double summary_deviation(const struct summary *summary)
{
    return summary->count < 2 ? 0 : sqrt(summary->squares / (double)(summary->count - 1));
}

/* What is known of a series of numbers that are seen once and not kept. */
#ifndef TALLY_SUMMARY_H
#define TALLY_SUMMARY_H

struct summary {
    unsigned long count;
    double sum, mean, squares; /* `squares`: summed squared distances from the mean (Welford 1962). */
    double min, max;
};

void summary_add(struct summary *summary, double value);

double summary_count(const struct summary *summary);
double summary_sum(const struct summary *summary);
double summary_mean(const struct summary *summary);
double summary_min(const struct summary *summary);
double summary_max(const struct summary *summary);
/* The sample's standard deviation; 0 for fewer than two values. */
double summary_deviation(const struct summary *summary);

#endif

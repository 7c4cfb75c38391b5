/* Groups as an aligned table: one line a group, one column an aggregate. */
#ifndef TALLY_REPORT_H
#define TALLY_REPORT_H

#include <stdbool.h>
#include <stdio.h>

#include "groups.h"

enum { COLUMNS_MAX = 16 };

struct columns {
    size_t count;
    size_t chosen[COLUMNS_MAX]; /* Places in the list of aggregates. */
};

/* "count,mean" as columns; false if a name is unknown or there are too many. NULL means all. */
bool columns_parse(struct columns *columns, const char *names);
/* `groups` must be sorted. */
void report_print(FILE *file, const char *title, const struct groups *groups, const struct columns *columns);
/* Every aggregate with its meaning, for --help. */
void report_explain(FILE *file);

#endif

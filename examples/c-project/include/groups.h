/* One summary for each name: a hash table with open addressing. */
#ifndef TALLY_GROUPS_H
#define TALLY_GROUPS_H

#include <stddef.h>

#include "summary.h"

struct group {
    char *name; /* NULL: this place is free. */
    struct summary summary;
};

struct groups {
    struct group *places;
    size_t room, count;
};

/* The summary of this name, made empty when it is new. Valid until the next call. */
struct summary *groups_find(struct groups *groups, const char *name);
/* Closes the gaps and sorts by name: after this nothing more can be found or added. */
void groups_sort(struct groups *groups);
void groups_free(struct groups *groups);

#endif

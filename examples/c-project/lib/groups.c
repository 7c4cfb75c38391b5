#include "groups.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"

static uint64_t hash(const char *name)
{
    uint64_t value = 14695981039346656037u; /* FNV-1a. */
    for (; *name; name++)
        value = (value ^ (unsigned char)*name) * 1099511628211u;
    return value;
}

/* Where this name is, or belongs. There is always a free place. */
static struct group *place_of(const struct groups *groups, const char *name)
{
    size_t index = hash(name) & (groups->room - 1);
    while (groups->places[index].name && strcmp(groups->places[index].name, name) != 0)
        index = (index + 1) & (groups->room - 1);
    return &groups->places[index];
}

static void enlarge(struct groups *groups)
{
    struct groups larger = {.room = groups->room ? groups->room * 2 : 16, .count = groups->count};
    larger.places = grow(NULL, larger.room, sizeof *larger.places);
    memset(larger.places, 0, larger.room * sizeof *larger.places);
    for (size_t index = 0; index < groups->room; index++)
        if (groups->places[index].name)
            *place_of(&larger, groups->places[index].name) = groups->places[index];
    free(groups->places);
    *groups = larger;
}

struct summary *groups_find(struct groups *groups, const char *name)
{
    if (groups->count * 4 >= groups->room * 3)
        enlarge(groups);
    struct group *group = place_of(groups, name);
    if (!group->name) {
        group->name = copy_text(name);
        groups->count++;
    }
    return &group->summary;
}

static int by_name(const void *left, const void *right)
{
    return strcmp(((const struct group *)left)->name, ((const struct group *)right)->name);
}

void groups_sort(struct groups *groups)
{
    size_t kept = 0;
    for (size_t index = 0; index < groups->room; index++)
        if (groups->places[index].name)
            groups->places[kept++] = groups->places[index];
    if (kept)
        qsort(groups->places, kept, sizeof *groups->places, by_name);
    groups->room = kept;
}

void groups_free(struct groups *groups)
{
    for (size_t index = 0; index < groups->room; index++)
        free(groups->places[index].name);
    free(groups->places);
    *groups = (struct groups){0};
}

#include "report.h"

#include <string.h>

#include "aggregates.h"

enum { AGGREGATES_COUNT = sizeof AGGREGATES / sizeof *AGGREGATES };

static bool find_aggregate(const char *name, size_t length, size_t *found)
{
    for (*found = 0; *found < AGGREGATES_COUNT; ++*found)
        if (strlen(AGGREGATES[*found].name) == length && strncmp(AGGREGATES[*found].name, name, length) == 0)
            return true;
    return false;
}

bool columns_parse(struct columns *columns, const char *names)
{
    columns->count = 0;
    if (!names) {
        while (columns->count < AGGREGATES_COUNT) {
            columns->chosen[columns->count] = columns->count;
            columns->count++;
        }
        return true;
    }
    for (;;) {
        size_t length = strcspn(names, ",");
        if (columns->count == COLUMNS_MAX || !find_aggregate(names, length, &columns->chosen[columns->count]))
            return false;
        columns->count++;
        if (!names[length])
            return true;
        names += length + 1;
    }
}

void report_print(FILE *file, const char *title, const struct groups *groups, const struct columns *columns)
{
    size_t width = strlen(title);
    for (size_t index = 0; index < groups->count; index++)
        if (strlen(groups->places[index].name) > width)
            width = strlen(groups->places[index].name);
    fprintf(file, "%-*s", (int)width, title);
    for (size_t column = 0; column < columns->count; column++)
        fprintf(file, "  %12s", AGGREGATES[columns->chosen[column]].name);
    fputc('\n', file);
    for (size_t index = 0; index < groups->count; index++) {
        const struct group *group = &groups->places[index];
        fprintf(file, "%-*s", (int)width, group->name);
        for (size_t column = 0; column < columns->count; column++)
            fprintf(file, "  %12.10g", AGGREGATES[columns->chosen[column]].value(&group->summary));
        fputc('\n', file);
    }
}

void report_explain(FILE *file)
{
    for (size_t index = 0; index < AGGREGATES_COUNT; index++)
        fprintf(file, "  %-10s %s\n", AGGREGATES[index].name, AGGREGATES[index].meaning);
}

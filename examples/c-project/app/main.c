/* tally: groups the rows of a CSV file by one column and sums up another. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "csv.h"
#include "groups.h"
#include "report.h"
#include "version.h"

enum { OK = 0, BAD_DATA = 1, BAD_USAGE = 2 };

struct options {
    const char *by, *of, *show, *file;
    char delimiter;
};

static void help(FILE *file)
{
    fputs("usage: tally --by COLUMN --of COLUMN [--show NAME,...] [--delimiter CHARACTER] [FILE]\n"
          "\n"
          "Groups the rows of a CSV file by one column and says of the numbers in another:\n",
          file);
    report_explain(file);
}

static int wrong_usage(const char *what, const char *which)
{
    fprintf(stderr, "tally: %s%s\n", what, which);
    help(stderr);
    return BAD_USAGE;
}

/* Gives -1 to go on, or the exit code. */
static int parse_options(struct options *options, int count, char **words)
{
    for (int index = 1; index < count; index++) {
        const char *word = words[index];
        const char **value = strcmp(word, "--by") == 0 ? &options->by
            : strcmp(word, "--of") == 0                ? &options->of
            : strcmp(word, "--show") == 0              ? &options->show
                                                       : NULL;
        if (strcmp(word, "--version") == 0) {
            puts("tally " TALLY_VERSION);
            return OK;
        }
        if (strcmp(word, "--help") == 0) {
            help(stdout);
            return OK;
        }
        if (value || strcmp(word, "--delimiter") == 0) {
            if (++index == count)
                return wrong_usage("a value is missing after ", word);
            if (value)
                *value = words[index];
            else if (strlen(words[index]) == 1)
                options->delimiter = *words[index];
            else
                return wrong_usage("a delimiter is one character, not ", words[index]);
        } else if (word[0] == '-' && word[1]) {
            return wrong_usage("unknown option ", word);
        } else {
            options->file = word;
        }
    }
    return options->by && options->of ? -1 : wrong_usage("--by and --of are needed", "");
}

static bool find_column(const struct csv *csv, const char *name, size_t *found)
{
    for (*found = 0; *found < csv->count; ++*found)
        if (strcmp(csv_field(csv, *found), name) == 0)
            return true;
    fprintf(stderr, "tally: no column \"%s\"\n", name);
    return false;
}

static int tally(struct csv *csv, const struct options *options, const struct columns *columns)
{
    size_t by, of;
    unsigned long left_out = 0;
    struct groups groups = {0};

    if (!csv_read(csv) || !find_column(csv, options->by, &by) || !find_column(csv, options->of, &of))
        return BAD_DATA;
    while (csv_read(csv)) {
        const char *text = csv_field(csv, of);
        char *end;
        double value = strtod(text, &end);
        struct summary *summary = groups_find(&groups, csv_field(csv, by));
        if (end == text || *end)
            left_out++;
        else
            summary_add(summary, value);
    }
    if (!csv->problem) {
        groups_sort(&groups);
        report_print(stdout, options->by, &groups, columns);
        if (left_out)
            fprintf(stderr, "tally: %lu rows without a number in \"%s\"\n", left_out, options->of);
    }
    groups_free(&groups);
    return csv->problem ? BAD_DATA : OK;
}

int main(int count, char **words)
{
    struct options options = {.delimiter = ','};
    struct columns columns;
    struct csv csv;

    int code = parse_options(&options, count, words);
    if (code >= 0)
        return code;
    if (!columns_parse(&columns, options.show))
        return wrong_usage("cannot show ", options.show);
    bool from_stdin = !options.file || strcmp(options.file, "-") == 0;
    FILE *file = from_stdin ? stdin : fopen(options.file, "r");
    if (!file) {
        fprintf(stderr, "tally: %s: %s\n", options.file, strerror(errno));
        return BAD_DATA;
    }
    csv_open(&csv, file, options.delimiter);
    code = tally(&csv, &options, &columns);
    if (csv.problem)
        fprintf(stderr, "tally: line %lu: %s\n", csv.line, csv.problem);
    csv_close(&csv);
    if (!from_stdin)
        fclose(file);
    return code;
}

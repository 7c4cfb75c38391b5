/* Reads CSV as RFC 4180 has it, one record at a time: quoted fields may hold delimiters, quotes and newlines. */
#ifndef TALLY_CSV_H
#define TALLY_CSV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct csv {
    FILE *file;
    char delimiter;
    unsigned long line;  /* Where the last record began. */
    const char *problem; /* Why reading stopped, or NULL at the end of the file. */
    size_t count;        /* Fields of the last record. */

    unsigned long lines_seen;
    char *text; /* The fields, each with its NUL, one behind the other. */
    size_t used, room;
    size_t *starts;
    size_t slots;
};

void csv_open(struct csv *csv, FILE *file, char delimiter);
/* Reads the next record; false at the end, or when `problem` says why not. */
bool csv_read(struct csv *csv);
/* A field of the last record, valid until the next one is read. */
const char *csv_field(const struct csv *csv, size_t index);
void csv_close(struct csv *csv);

#endif

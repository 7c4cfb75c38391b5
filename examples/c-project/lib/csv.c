#include "csv.h"

#include <stdlib.h>

#include "memory.h"

void csv_open(struct csv *csv, FILE *file, char delimiter)
{
    *csv = (struct csv){.file = file, .delimiter = delimiter, .lines_seen = 1};
}

static void put(struct csv *csv, char character)
{
    if (csv->used == csv->room) {
        csv->room = csv->room ? csv->room * 2 : 256;
        csv->text = grow(csv->text, csv->room, 1);
    }
    csv->text[csv->used++] = character;
}

static void begin_field(struct csv *csv)
{
    if (csv->count == csv->slots) {
        csv->slots = csv->slots ? csv->slots * 2 : 16;
        csv->starts = grow(csv->starts, csv->slots, sizeof *csv->starts);
    }
    csv->starts[csv->count++] = csv->used;
}

/* The quoted rest of a field, the opening quote already read. Gives the character behind the closing quote. */
static int read_quoted(struct csv *csv)
{
    for (;;) {
        int character = getc(csv->file);
        if (character == EOF) {
            csv->problem = "a quoted field never ends";
            return EOF;
        }
        if (character == '\n')
            csv->lines_seen++;
        if (character == '"') {
            character = getc(csv->file);
            if (character != '"')
                return character;
        }
        put(csv, (char)character);
    }
}

/* One field, its end included. Gives what ended it: the delimiter, a newline or EOF. */
static int read_field(struct csv *csv, int character)
{
    begin_field(csv);
    if (character == '"') {
        character = read_quoted(csv);
        if (character == '\r')
            character = getc(csv->file);
        if (character != csv->delimiter && character != '\n' && character != EOF)
            csv->problem = "text follows a closing quote";
    } else {
        while (character != csv->delimiter && character != '\n' && character != EOF) {
            put(csv, (char)character);
            character = getc(csv->file);
        }
        if (character != csv->delimiter && csv->used > csv->starts[csv->count - 1] && csv->text[csv->used - 1] == '\r')
            csv->used--; /* A line that ends as on Windows. */
    }
    put(csv, '\0');
    return character;
}

bool csv_read(struct csv *csv)
{
    int character = getc(csv->file);
    while (character == '\n') { /* An empty line is no record. */
        csv->lines_seen++;
        character = getc(csv->file);
    }
    csv->used = csv->count = 0;
    csv->line = csv->lines_seen;
    if (character == EOF || csv->problem)
        return false;
    while (read_field(csv, character) == csv->delimiter && !csv->problem)
        character = getc(csv->file);
    csv->lines_seen++;
    return !csv->problem;
}

const char *csv_field(const struct csv *csv, size_t index)
{
    return index < csv->count ? csv->text + csv->starts[index] : "";
}

void csv_close(struct csv *csv)
{
    free(csv->text);
    free(csv->starts);
    *csv = (struct csv){0};
}

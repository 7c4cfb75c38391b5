/* The smallest test frame: CHECK counts, and CHECK_END is main's answer. */
#ifndef TALLY_CHECK_H
#define TALLY_CHECK_H

#include <stdio.h>
#include <string.h>

static int checks, failures;

#define CHECK(condition) check((condition), #condition, __FILE__, __LINE__)
#define CHECK_TEXT(found, wanted) CHECK(strcmp((found), (wanted)) == 0)

static void check(int condition, const char *text, const char *file, int line)
{
    checks++;
    if (condition)
        return;
    failures++;
    fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
}

static int check_end(void)
{
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}

#endif

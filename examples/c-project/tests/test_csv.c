#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include "csv.h"

static struct csv open_text(const char *text)
{
    struct csv csv;
    csv_open(&csv, fmemopen((void *)text, strlen(text), "r"), ',');
    return csv;
}

static void plain_fields(void)
{
    struct csv csv = open_text("a,b,\n\n1,,3\n");
    CHECK(csv_read(&csv) && csv.count == 3 && csv.line == 1);
    CHECK_TEXT(csv_field(&csv, 1), "b");
    CHECK_TEXT(csv_field(&csv, 2), "");
    CHECK(csv_read(&csv) && csv.count == 3 && csv.line == 3);
    CHECK_TEXT(csv_field(&csv, 2), "3");
    CHECK_TEXT(csv_field(&csv, 9), "");
    CHECK(!csv_read(&csv) && !csv.problem);
    fclose(csv.file);
    csv_close(&csv);
}

static void quotes_and_windows(void)
{
    struct csv csv = open_text("\"a, \"\"b\"\"\",\"two\nlines\"\r\nplain,end");
    CHECK(csv_read(&csv) && csv.count == 2);
    CHECK_TEXT(csv_field(&csv, 0), "a, \"b\"");
    CHECK_TEXT(csv_field(&csv, 1), "two\nlines");
    CHECK(csv_read(&csv) && csv.count == 2 && csv.line == 3);
    CHECK_TEXT(csv_field(&csv, 1), "end");
    fclose(csv.file);
    csv_close(&csv);
}

static void problems(void)
{
    struct csv open_end = open_text("x\n\"never");
    CHECK(csv_read(&open_end));
    CHECK(!csv_read(&open_end) && open_end.problem && open_end.line == 2);
    fclose(open_end.file);
    csv_close(&open_end);
    struct csv behind = open_text("\"a\"b,c\n");
    CHECK(!csv_read(&behind) && behind.problem);
    fclose(behind.file);
    csv_close(&behind);
}

int main(void)
{
    plain_fields();
    quotes_and_windows();
    problems();
    return check_end();
}

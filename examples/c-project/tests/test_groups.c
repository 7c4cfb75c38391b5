#include "check.h"
#include "groups.h"

int main(void)
{
    struct groups groups = {0};
    char name[16];

    for (int number = 0; number < 1000; number++) {
        snprintf(name, sizeof name, "name %d", number % 100);
        summary_add(groups_find(&groups, name), number);
    }
    CHECK(groups.count == 100);
    groups_sort(&groups);
    CHECK_TEXT(groups.places[0].name, "name 0");
    CHECK_TEXT(groups.places[99].name, "name 99");
    for (size_t index = 1; index < groups.count; index++)
        CHECK(strcmp(groups.places[index - 1].name, groups.places[index].name) < 0);
    CHECK(groups.places[99].summary.count == 10 && groups.places[99].summary.sum == 5490);
    groups_free(&groups);

    groups_sort(&groups);
    CHECK(groups.count == 0);
    return check_end();
}

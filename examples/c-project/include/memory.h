/* Memory or the end of the program: there is nothing better that a small tool could do. */
#ifndef TALLY_MEMORY_H
#define TALLY_MEMORY_H

#include <stddef.h>

void *grow(void *old, size_t count, size_t size);
char *copy_text(const char *text);

#endif

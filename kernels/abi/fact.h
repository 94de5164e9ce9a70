// A named integer that a kernel tells about itself; index.json lists them.
#ifndef KVIT_ABI_FACT_H
#define KVIT_ABI_FACT_H

#include <stdint.h>

typedef struct KvitFact {
  const char* name;
  int32_t value;
} KvitFact;

#endif  // KVIT_ABI_FACT_H

// What the files of this folder share at run time.
#include "native.h"
#include "parallel.h"

Parallel pytorch_parallel = nullptr;

void use_parallel(void* parallel) { pytorch_parallel = reinterpret_cast<Parallel>(parallel); }

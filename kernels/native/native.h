// Every function of the library. `library.py` reads the names and kinds of arguments from here, so this is their only
// statement: one function a line or several, arguments by name, of the kinds
//   const float*, float*    float32, contiguous          const void*, void*    labels of `label_bytes` each
//   int64_t                 sizes, flags                 float                 numbers
// Pointers may be null where a comment says so.
#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

// The entry of PyTorch's OpenMP library; null: threads of our own.
void use_parallel(void* parallel);

// Sums of pixels (rows, channels): mean and squares about it, channels doubles each; of `threads` parts.
void batch_statistics(int64_t threads, const float* x, int64_t rows, int64_t channels, float* mean, float* var);
}
#pragma GCC visibility pop

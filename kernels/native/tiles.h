// Products on the matrix unit of newer x86 processors (AMX), which multiplies numbers of 16 bits and adds in float32.
//
// A float32 operand is split in parts, each the rounding of what is left to the 8 significant bits of bfloat16, and the
// products of parts that count are added up:
//
//   three parts: a b = a1 b1 + a1 b2 + a1 b3 + a2 b1 + a2 b2 + a3 b1, without 2^-26 of it: as exact as float32
//   two parts:   a b = a1 b1 + a1 b2 + a2 b1, without 2^-17 of it: more exact than tf32
//
// Of operands below 1e-34 parts may be lost, and an infinite one gives NaN.
#pragma once

#include <cstdint>

// Compilers that know the unit bring one of these headers: GCC, Clang.
#if defined(__linux__) && defined(__AVX512F__) && (__has_include(<amxbf16intrin.h>) || __has_include(<amxintrin.h>))
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

struct Left;

namespace tiles {

typedef uint16_t half;  // a part: the upper half of a float32 number

// Parts of an operand, or 0 where products are made of vectors; of the whole process.
int64_t parts();

// Numbers of a right operand in tiles.
int64_t size_of_right(int64_t parts, int64_t depth, int64_t columns);

// A right operand (depth, columns), rows `row` apart, to tiles.
void split_right(int64_t parts, const float* b, int64_t row, int64_t depth, int64_t columns, half* to);

// c (rows, columns) = a (rows, depth) b + bias, a row of whole vectors or null; or += a b with `add`.
void product(int64_t parts, int64_t rows, int64_t columns, int64_t depth, const Left& a, const half* b, const float* bias,
             bool add, float* c, int64_t c_row);

// The same of a right operand that is not in tiles yet.
void product_of(int64_t parts, int64_t rows, int64_t columns, int64_t depth, const Left& a, const float* b, int64_t b_row,
                const float* bias, bool add, float* c, int64_t c_row);

}  // namespace tiles

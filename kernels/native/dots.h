// Products of rows with rows, for few columns and very long rows that are read once, in their order:
//
//   sums (rows, columns) of vectors += lane by lane a (rows, depth) b (columns, depth)
//
// The lanes are summed when all is done. Rows of a may lie far apart: the next ones are fetched while some are read.
#pragma once

#include "vectors.h"

template <int ROWS, int COLUMNS>
static INLINE void dots_tile(int64_t depth, const float* a, int64_t a_row, const float* b, int64_t b_row, float* sums,
                             int64_t sums_row) {
  const Tail tail(depth);
  vec found[ROWS][COLUMNS] = {};
  const auto add = [&](int64_t k, const auto& read) {
    vec row[ROWS];
    UNROLL for (int i = 0; i < ROWS; ++i) {
      row[i] = read(a + i * a_row + k);
      fetch(a + (i + ROWS) * a_row + k);
    }
    UNROLL for (int j = 0; j < COLUMNS; ++j) {
      const vec column = load(b + j * b_row + k);  // 0 is what its lanes beyond the depth are multiplied with
      UNROLL for (int i = 0; i < ROWS; ++i) found[i][j] += row[i] * column;
    }
  };
  for (int64_t k = 0; k < tail.whole; k += LANES) add(k, [](const float* p) { return load(p); });
  if (tail.rest) add(tail.whole, [&](const float* p) { return tail.load(p); });

  UNROLL for (int i = 0; i < ROWS; ++i) {
    UNROLL for (int j = 0; j < COLUMNS; ++j) {
      float* to = sums + i * sums_row + j * LANES;
      store(to, load(to) + found[i][j]);
    }
  }
}

template <int ROWS>
static void dots_rows(int64_t columns, int64_t depth, const float* a, int64_t a_row, const float* b, int64_t b_row,
                      float* sums, int64_t sums_row) {
  int64_t j = 0;
  const auto of = [&](int64_t column) { return b + column * b_row; };
  for (; j + 8 <= columns; j += 8) dots_tile<ROWS, 8>(depth, a, a_row, of(j), b_row, sums + j * LANES, sums_row);
  for (; j + 4 <= columns; j += 4) dots_tile<ROWS, 4>(depth, a, a_row, of(j), b_row, sums + j * LANES, sums_row);
  for (; j + 2 <= columns; j += 2) dots_tile<ROWS, 2>(depth, a, a_row, of(j), b_row, sums + j * LANES, sums_row);
  for (; j < columns; ++j) dots_tile<ROWS, 1>(depth, a, a_row, of(j), b_row, sums + j * LANES, sums_row);
}

// sums_row: numbers from row to row of sums, columns * LANES or more.
static inline void add_dots(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row, const float* b,
                            int64_t b_row, float* sums, int64_t sums_row) {
  int64_t i = 0;
  for (; i + 2 <= rows; i += 2)
    dots_rows<2>(columns, depth, a + i * a_row, a_row, b, b_row, sums + i * sums_row, sums_row);
  for (; i < rows; ++i) dots_rows<1>(columns, depth, a + i * a_row, a_row, b, b_row, sums + i * sums_row, sums_row);
}

// Rows of whole vectors, and sums of them over pixels.
#pragma once

#include "products.h"

// A row of `n` numbers in whole vectors, the last lanes 0; of `fill` where there are none.
struct Row {
  Scratch numbers;
  Row(const float* p, int64_t n, float fill) : numbers(padded(n)) {
    for (int64_t j = 0; j < n; ++j) numbers[j] = p ? p[j] : fill;
  }
  operator float*() const { return numbers; }
};

static inline void clear(float* p, int64_t n) { std::memset(p, 0, n * sizeof(float)); }

// sums += x
static inline void add_to(float* sums, const float* x, int64_t n) {
  for (int64_t j = 0; j < n; ++j) sums[j] += x[j];
}

// sums += the sum of rows, which is put together first: few large terms round like few.
static inline void add_rows(const float* x, int64_t x_row, int64_t rows, int64_t n, float* scratch, float* sums) {
  clear(scratch, n);
  for (int64_t row = 0; row < rows; ++row) add_to(scratch, x + row * x_row, n);
  add_to(sums, scratch, n);
}

// Rows to memory that is not read soon, past the caches: no line is read only to be overwritten. value(j, read) are numbers
// from j on, where read(p) loads a vector or what is left of one. `end_streams` afterwards.
template <typename Value>
static INLINE void stream_row(int64_t n, const Value& value, float* to) {
  const int64_t to_vector = -(reinterpret_cast<intptr_t>(to) / static_cast<intptr_t>(sizeof(float))) & (LANES - 1);
  const Tail start(std::min(n, to_vector)), rest(n - start.rest);
  const int64_t end = start.rest + rest.whole;
  if (start.rest) start.store(to, value(0, [&](const float* p) { return start.load(p); }));
  for (int64_t j = start.rest; j < end; j += LANES) stream(to + j, value(j, [](const float* p) { return load(p); }));
  if (rest.rest) rest.store(to + end, value(end, [&](const float* p) { return rest.load(p); }));
}
static inline void stream_rows(const float* from, int64_t rows, int64_t n, float* to, int64_t to_row) {  // from: n apart
  if (to_row == n) n *= rows, rows = 1;
  for (int64_t row = 0; row < rows; ++row, from += n, to += to_row)
    stream_row(n, [&](int64_t j, const auto& read) { return read(from + j); }, to);
}

// A row times a factor, to a row of whole vectors whose last lanes become 0; and back.
static INLINE void read_row(const float* from, const Tail& tail, float factor, float* to) {
  for (int64_t j = 0; j < tail.whole; j += LANES) store(to + j, load(from + j) * factor);
  if (tail.rest) store(to + tail.whole, tail.load(from + tail.whole) * factor);
}
static INLINE void write_row(const float* from, const Tail& tail, float factor, float* to) {
  for (int64_t j = 0; j < tail.whole; j += LANES) store(to + j, load(from + j) * factor);
  if (tail.rest) tail.store(to + tail.whole, load(from + tail.whole) * factor);
}

// A row to where it is wanted, from number `at` on.
static inline void copy_row(const float* from, int64_t n, float* to, int64_t at = 0) {
  if (to) copy_rows(from, n, 1, n, to + at, n);
}

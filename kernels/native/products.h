// Products of matrices that lie in the caches.
//
//   product(rows, columns, depth, a, b, c): c (rows, columns) (+)= a (rows, depth) b (depth, columns)
//
// `b` and `c` have rows of whole vectors; b is scratch memory, or packed once with `Packed`. `a` may be read with any
// strides, so that a transposed product needs no copy.
#pragma once

#include <memory>
#include <new>

#include "vectors.h"

// Aligned memory of zeros.
class Scratch {
 public:
  explicit Scratch(int64_t numbers) : memory_(static_cast<float*>(::operator new[](size(numbers), std::align_val_t(64)))) {
    std::memset(memory_, 0, size(numbers));
  }
  ~Scratch() { ::operator delete[](memory_, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator float*() const { return memory_; }

 private:
  static std::size_t size(int64_t numbers) { return static_cast<std::size_t>(numbers + LANES) * sizeof(float); }
  float* memory_;
};

struct Left {
  const float* p;
  int64_t row, depth;  // strides
};

// Panels of a right operand: as even as can be, none wider than what leaves registers for enough rows.
constexpr int WIDEST = REGISTERS == 32 ? 5 : 3;
constexpr int ROWS_OF[] = {0, REGISTERS == 32 ? 14 : 8, REGISTERS == 32 ? 12 : 6, REGISTERS == 32 ? 8 : 4, 6, 5};

struct Panels {
  int64_t vectors, count;
  explicit Panels(int64_t columns) : vectors(padded(columns) / LANES), count((vectors + WIDEST - 1) / WIDEST) {}
  INLINE int64_t first(int64_t panel) const { return panel * vectors / count; }
};

struct Right {
  const float* p;
  int64_t row;  // stride of a row; 0 where it is packed in panels
};

// (depth, columns) in panels, padded with zeros, from a matrix with any strides.
class Packed {
 public:
  Packed(const float* p, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride)
      : memory_(depth * padded(columns)) {
    const Panels panels(columns);
    float* to = memory_;
    for (int64_t panel = 0; panel < panels.count; ++panel)
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t j = panels.first(panel) * LANES; j < panels.first(panel + 1) * LANES; ++j)
          *to++ = j < columns ? p[k * depth_stride + j * column_stride] : 0.0f;
  }
  operator Right() const { return {memory_, 0}; }

 private:
  Scratch memory_;
};

// What c begins as: 0; a row of numbers; what it is, to which the product is added when it is whole, so that a sum of
// many products rounds like a sum of few numbers.
enum class Start { zero, bias, sum };

template <int ROWS, int VECTORS, Start START>
static INLINE void tile(int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, const float* bias) {
  vec sums[ROWS][VECTORS];
  UNROLL for (int i = 0; i < ROWS; ++i) {
    UNROLL for (int j = 0; j < VECTORS; ++j) {
      sums[i][j] = START == Start::bias ? load(bias + j * LANES) : zeros();
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    vec row[VECTORS];
    UNROLL for (int j = 0; j < VECTORS; ++j) row[j] = load(b + k * b_row + j * LANES);
    UNROLL for (int i = 0; i < ROWS; ++i) {
      const vec factor = all(a.p[i * a.row + k * a.depth]);
      UNROLL for (int j = 0; j < VECTORS; ++j) sums[i][j] += factor * row[j];
    }
  }
  UNROLL for (int i = 0; i < ROWS; ++i) {
    UNROLL for (int j = 0; j < VECTORS; ++j) {
      float* to = c + i * c_row + j * LANES;
      store(to, START == Start::sum ? load(to) + sums[i][j] : sums[i][j]);
    }
  }
}

template <int VECTORS, Start START>
static void panel(int64_t rows, int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, const float* bias) {
  constexpr int ROWS = ROWS_OF[VECTORS];
  int64_t i = 0;
  for (; i + ROWS <= rows; i += ROWS) tile<ROWS, VECTORS, START>(depth, {a.p + i * a.row, a.row, a.depth}, b, b_row, c + i * c_row, c_row, bias);
  for (; i + 4 <= rows; i += 4) tile<4, VECTORS, START>(depth, {a.p + i * a.row, a.row, a.depth}, b, b_row, c + i * c_row, c_row, bias);
  for (; i + 2 <= rows; i += 2) tile<2, VECTORS, START>(depth, {a.p + i * a.row, a.row, a.depth}, b, b_row, c + i * c_row, c_row, bias);
  for (; i < rows; ++i) tile<1, VECTORS, START>(depth, {a.p + i * a.row, a.row, a.depth}, b, b_row, c + i * c_row, c_row, bias);
}

template <Start START>
static void panel_of(int64_t vectors, int64_t rows, int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, const float* bias) {
  if (vectors == 1) panel<1, START>(rows, depth, a, b, b_row, c, c_row, bias);
  if (vectors == 2) panel<2, START>(rows, depth, a, b, b_row, c, c_row, bias);
  if (vectors == 3) panel<3, START>(rows, depth, a, b, b_row, c, c_row, bias);
  if constexpr (WIDEST == 5) {
    if (vectors == 4) panel<4, START>(rows, depth, a, b, b_row, c, c_row, bias);
    if (vectors == 5) panel<5, START>(rows, depth, a, b, b_row, c, c_row, bias);
  }
}

// Terms that are summed one after the other: longer sums are put together of such, which round less.
constexpr int64_t DEEPEST = 32;

template <Start START>
static void product_from(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c, int64_t c_row, const float* bias) {
  const Panels panels(columns);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t first = panels.first(p), vectors = panels.first(p + 1) - first, at = first * LANES;
    const float* from = b.p + (b.row ? at : at * depth);
    const int64_t b_row = b.row ? b.row : vectors * LANES;
    const float* row = bias ? bias + at : nullptr;
    for (int64_t k = 0; k == 0 || k < depth; k += DEEPEST) {
      const int64_t terms = std::min(DEEPEST, depth - k);
      const Left here = {a.p + k * a.depth, a.row, a.depth};
      if (k == 0) {
        panel_of<START>(vectors, rows, terms, here, from, b_row, c + at, c_row, row);
      } else {
        panel_of<Start::sum>(vectors, rows, terms, here, from + k * b_row, b_row, c + at, c_row, nullptr);
      }
    }
  }
}

// c = a b
static inline void product(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c, int64_t c_row) {
  product_from<Start::zero>(rows, columns, depth, a, b, c, c_row, nullptr);
}
// c = a b + bias, a row of whole vectors
static inline void product_plus(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, const float* bias, float* c, int64_t c_row) {
  product_from<Start::bias>(rows, columns, depth, a, b, c, c_row, bias);
}
// c += a b
static inline void add_product(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c, int64_t c_row) {
  product_from<Start::sum>(rows, columns, depth, a, b, c, c_row, nullptr);
}

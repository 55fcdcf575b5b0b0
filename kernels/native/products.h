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

// Panels of a right operand: as even as can be, none wider than what leaves registers for enough rows. Where half a
// vector or less is left over, it is a narrower panel of its own, the edge.
constexpr int WIDEST = REGISTERS == 32 ? 5 : 3;
constexpr int ROWS_OF[] = {0, REGISTERS == 32 ? 14 : 8, REGISTERS == 32 ? 12 : 6, REGISTERS == 32 ? 8 : 4, 6, 5};

struct Panels {
  int64_t vectors, count;  // whole vectors, in so many panels
  int edge;                // lanes of the edge; 0 without one

  explicit Panels(int64_t columns) {
    const int rest = static_cast<int>(columns % LANES);
    edge = rest && rest <= LANES / 2 ? (rest <= 4 ? 4 : 8) : 0;
    vectors = edge ? columns / LANES : padded(columns) / LANES;
    count = (vectors + WIDEST - 1) / WIDEST;
  }
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
    const auto pack = [&](int64_t first, int64_t last) {
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t j = first; j < last; ++j) *to++ = j < columns ? p[k * depth_stride + j * column_stride] : 0.0f;
    };
    for (int64_t panel = 0; panel < panels.count; ++panel)
      pack(panels.first(panel) * LANES, panels.first(panel + 1) * LANES);
    pack(panels.vectors * LANES, panels.vectors * LANES + panels.edge);
  }
  operator Right() const { return {memory_, 0}; }

 private:
  Scratch memory_;
};

// What c begins as: 0; a row of numbers; what it is, to which the product is added when it is whole, so that a sum of
// many products rounds like a sum of few numbers.
enum class Start { zero, bias, sum };

// Terms that are summed one after the other: longer sums are put together of such, which round less.
constexpr int64_t DEEPEST = 32;

// N lanes of a vector: all, or those of the edge.
template <int N>
struct Lanes {
  typedef float type __attribute__((vector_size(N * 4)));
  typedef float loose __attribute__((vector_size(N * 4), aligned(4), may_alias));
  static INLINE type load(const float* p) { return *reinterpret_cast<const loose*>(p); }
  static INLINE void store(float* p, type x) { *reinterpret_cast<loose*>(p) = x; }
};

template <int N, int ROWS, int VECTORS, Start START>
static INLINE void tile(int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, const float* bias) {
  typedef typename Lanes<N>::type vec_n;
  for (int64_t first = 0; first == 0 || first < depth; first += DEEPEST) {
    const bool add = START == Start::sum || first > 0;
    vec_n sums[ROWS][VECTORS];
    UNROLL for (int i = 0; i < ROWS; ++i) {
      UNROLL for (int j = 0; j < VECTORS; ++j) {
        sums[i][j] = START == Start::bias && !add ? Lanes<N>::load(bias + j * N) : vec_n{};
      }
    }
    for (int64_t k = first; k < std::min(first + DEEPEST, depth); ++k) {
      vec_n row[VECTORS];
      UNROLL for (int j = 0; j < VECTORS; ++j) row[j] = Lanes<N>::load(b + k * b_row + j * N);
      UNROLL for (int i = 0; i < ROWS; ++i) {
        const vec_n factor = a.p[i * a.row + k * a.depth] - vec_n{};
        UNROLL for (int j = 0; j < VECTORS; ++j) sums[i][j] += factor * row[j];
      }
    }
    UNROLL for (int i = 0; i < ROWS; ++i) {
      UNROLL for (int j = 0; j < VECTORS; ++j) {
        float* to = c + i * c_row + j * N;
        Lanes<N>::store(to, add ? Lanes<N>::load(to) + sums[i][j] : sums[i][j]);
        if (N < LANES && !add) std::memset(to + N, 0, (LANES - N) * sizeof(float));
      }
    }
  }
}

template <int N, int VECTORS, Start START>
static void panel(int64_t rows, int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, const float* bias) {
  constexpr int ROWS = ROWS_OF[VECTORS];
  const auto from = [&](int64_t i) -> Left { return {a.p + i * a.row, a.row, a.depth}; };
  int64_t i = 0;
  for (; i + ROWS <= rows; i += ROWS) tile<N, ROWS, VECTORS, START>(depth, from(i), b, b_row, c + i * c_row, c_row, bias);
  for (; i + 4 <= rows; i += 4) tile<N, 4, VECTORS, START>(depth, from(i), b, b_row, c + i * c_row, c_row, bias);
  for (; i + 2 <= rows; i += 2) tile<N, 2, VECTORS, START>(depth, from(i), b, b_row, c + i * c_row, c_row, bias);
  for (; i < rows; ++i) tile<N, 1, VECTORS, START>(depth, from(i), b, b_row, c + i * c_row, c_row, bias);
}

// A panel of so many vectors, or the edge, of so many lanes.
template <Start START>
static void panel_of(int64_t vectors, int edge, int64_t rows, int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, const float* bias) {
  if (edge == 4) return panel<4, 1, START>(rows, depth, a, b, b_row, c, c_row, bias);
  if (edge == 8) return panel<std::min(8, LANES), 1, START>(rows, depth, a, b, b_row, c, c_row, bias);
  if (vectors == 1) panel<LANES, 1, START>(rows, depth, a, b, b_row, c, c_row, bias);
  if (vectors == 2) panel<LANES, 2, START>(rows, depth, a, b, b_row, c, c_row, bias);
  if (vectors == 3) panel<LANES, 3, START>(rows, depth, a, b, b_row, c, c_row, bias);
  if constexpr (WIDEST == 5) {
    if (vectors == 4) panel<LANES, 4, START>(rows, depth, a, b, b_row, c, c_row, bias);
    if (vectors == 5) panel<LANES, 5, START>(rows, depth, a, b, b_row, c, c_row, bias);
  }
}

template <Start START>
static void product_from(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c, int64_t c_row, const float* bias) {
  const Panels panels(columns);
  const auto walk = [&](int64_t at, int64_t vectors, int edge) {
    const float *from = b.p + (b.row ? at : at * depth), *row = bias ? bias + at : nullptr;
    const int64_t b_row = b.row ? b.row : edge ? edge : vectors * LANES;
    panel_of<START>(vectors, edge, rows, depth, a, from, b_row, c + at, c_row, row);
  };
  for (int64_t p = 0; p < panels.count; ++p) walk(panels.first(p) * LANES, panels.first(p + 1) - panels.first(p), 0);
  if (panels.edge) walk(panels.vectors * LANES, 1, panels.edge);
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

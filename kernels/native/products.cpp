// The products of products.h: tiles of c in registers. In a file of its own, for it is long to compile.
#include "products.h"

namespace {

constexpr int ROWS_OF[] = {0, REGISTERS == 32 ? 14 : 8, REGISTERS == 32 ? 12 : 6, REGISTERS == 32 ? 8 : 4, 6, 5};

// What c begins as: 0; a row of numbers; what it is, to which the product is added when it is whole, so that a sum of
// many products rounds like a sum of few numbers.
enum class Start { zero, bias, sum };

// Terms that are summed one after the other: longer sums are put together of such, which round less.
constexpr int64_t DEEPEST = 32;

// Rows and columns from which it is worth to split a right operand that is used once.
constexpr int64_t ROWS_OF_TILES = 64, COLUMNS_OF_TILES = 96;

// N lanes of a vector: all, or those of the edge.
template <int N>
struct Lanes {
  typedef float type __attribute__((vector_size(N * 4)));
  typedef float loose __attribute__((vector_size(N * 4), aligned(4), may_alias));
  static INLINE type load(const float* p) { return *reinterpret_cast<const loose*>(p); }
  static INLINE void store(float* p, type x) { *reinterpret_cast<loose*>(p) = x; }
};

template <int N, int ROWS, int VECTORS, Start START>
INLINE void tile(int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, const float* bias) {
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
void panel(int64_t rows, int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, const float* bias) {
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
void panel_of(int64_t vectors, int edge, int64_t rows, int64_t depth, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, const float* bias) {
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
void product_from(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c, int64_t c_row, const float* bias) {
  const bool add = START == Start::sum;
  if (b.parts) {
    const auto right = reinterpret_cast<const tiles::half*>(b.p);
    return tiles::product(b.parts, rows, columns, depth, a, right, bias, add, c, c_row);
  }
  const int64_t parts = b.row && rows >= ROWS_OF_TILES && columns >= COLUMNS_OF_TILES && depth >= 32 ? tiles::parts() : 0;
  if (parts) return tiles::product_of(parts, rows, columns, depth, a, b.p, b.row, bias, add, c, c_row);

  const Panels panels(columns);
  const auto walk = [&](int64_t at, int64_t vectors, int edge) {
    const float *from = b.p + (b.row ? at : at * depth), *row = bias ? bias + at : nullptr;
    const int64_t b_row = b.row ? b.row : edge ? edge : vectors * LANES;
    panel_of<START>(vectors, edge, rows, depth, a, from, b_row, c + at, c_row, row);
  };
  for (int64_t p = 0; p < panels.count; ++p) walk(panels.first(p) * LANES, panels.first(p + 1) - panels.first(p), 0);
  if (panels.edge) walk(panels.vectors * LANES, 1, panels.edge);
}

}  // namespace

// c = a b
void product(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c, int64_t c_row) {
  product_from<Start::zero>(rows, columns, depth, a, b, c, c_row, nullptr);
}
// c = a b + bias, a row of whole vectors
void product_plus(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, const float* bias, float* c, int64_t c_row) {
  product_from<Start::bias>(rows, columns, depth, a, b, c, c_row, bias);
}
// c += a b
void add_product(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c, int64_t c_row) {
  product_from<Start::sum>(rows, columns, depth, a, b, c, c_row, nullptr);
}

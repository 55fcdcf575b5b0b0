// Products of matrices that lie in the caches.
//
//   product(rows, columns, depth, a, b, c): c (rows, columns) (+)= a (rows, depth) b (depth, columns)
//
// `b` and `c` have rows of whole vectors; b is scratch memory, or packed once with `Packed`. `a` may be read with any
// strides, so that a transposed product needs no copy.
#pragma once

#include <memory>
#include <new>

#include "parallel.h"
#include "tiles.h"
#include "vectors.h"

// Aligned memory.
class Unset {
 public:
  explicit Unset(int64_t numbers) : memory_(static_cast<float*>(::operator new[](size(numbers), std::align_val_t(64)))) {}
  ~Unset() { ::operator delete[](memory_, std::align_val_t(64)); }
  Unset(const Unset&) = delete;
  Unset& operator=(const Unset&) = delete;
  operator float*() const { return memory_; }

 protected:
  static std::size_t size(int64_t numbers) { return static_cast<std::size_t>(numbers + LANES) * sizeof(float); }
  float* memory_;
};

// Aligned memory of zeros.
class Scratch : public Unset {
 public:
  explicit Scratch(int64_t numbers) : Unset(numbers) { std::memset(memory_, 0, size(numbers)); }
};

// Rows of `n` numbers, `from_row` and `to_row` apart.
static inline void copy_rows(const float* from, int64_t from_row, int64_t rows, int64_t n, float* to, int64_t to_row) {
  for (int64_t row = 0; row < rows; ++row) std::memcpy(to + row * to_row, from + row * from_row, n * sizeof(float));
}

// to (columns, to_row) = from (rows, from_row), turned, times a factor.
static inline void turn(const float* from, int64_t from_row, int64_t rows, int64_t columns, float factor, float* to,
                        int64_t to_row) {
  const Tail last_row(rows), last_column(columns);
  for (int64_t row = 0; row < rows; row += LANES) {
    for (int64_t column = 0; column < columns; column += LANES) {
      const int some_rows = row < last_row.whole ? LANES : last_row.rest;
      const int some_columns = column < last_column.whole ? LANES : last_column.rest;
      vec square[LANES] = {};
      for (int i = 0; i < some_rows; ++i) {
        const float* p = from + (row + i) * from_row + column;
        square[i] = some_columns == LANES ? load(p) : last_column.load(p);
      }
      transpose(square);
      for (int i = 0; i < some_columns; ++i) {
        float* p = to + (column + i) * to_row + row;
        if (some_rows == LANES) store(p, square[i] * factor);
        else last_row.store(p, square[i] * factor);
      }
    }
  }
}

struct Left {
  const float* p;
  int64_t row, depth;  // strides
};

// Panels of a right operand: as even as can be, none wider than what leaves registers for enough rows. Where half a
// vector or less is left over, it is a narrower panel of its own, the edge.
constexpr int WIDEST = REGISTERS == 32 ? 5 : 3;

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
  int64_t row;        // stride of a row; 0 where it is packed
  int64_t parts = 0;  // that it is split in, where it is packed in tiles
};

// (depth, columns) in panels or tiles, padded with zeros, from a matrix one of whose strides is 1.
class Packed {
 public:
  Packed(const float* p, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride, int64_t threads = 1)
      : parts_(worth_tiles(depth, columns) ? tiles::parts() : 0), memory_(size(parts_, depth, columns)) {
    const bool turned = column_stride != 1;
    if (depth * columns < SHARED) threads = 1;

    // Rows of `width` columns from `at` on, zeros behind the last of all.
    const auto copy = [&](int64_t at, int64_t width, float* to) {
      const int64_t some = std::min(width, columns - at);
      if (some < width) std::memset(to, 0, depth * width * sizeof(float));
      if (turned) return turn(p + at * column_stride, column_stride, some, depth, 1.0f, to, width);
      copy_rows(p + at, depth_stride, depth, some, to, width);
    };

    if (parts_) {
      parallel(threads, (columns + TURNED - 1) / TURNED, [&](int64_t part) {
        const int64_t at = part * TURNED, some = std::min(TURNED, columns - at);
        const auto all = reinterpret_cast<tiles::half*>(static_cast<float*>(memory_));
        tiles::half* to = all + tiles::size_of_right(parts_, depth, at);
        if (!turned) return tiles::split_right(parts_, p + at, depth_stride, depth, some, to);
        const Unset rows(depth * TURNED);
        copy(at, TURNED, rows);
        tiles::split_right(parts_, rows, TURNED, depth, some, to);
      });
      return;
    }

    const Panels panels(columns);
    parallel(threads, panels.count, [&](int64_t panel) {
      const int64_t at = panels.first(panel) * LANES;
      copy(at, panels.first(panel + 1) * LANES - at, memory_ + depth * at);
    });
    const int64_t whole = panels.vectors * LANES;
    if (panels.edge) copy(whole, panels.edge, memory_ + depth * whole);
  }
  operator Right() const { return {memory_, 0, parts_}; }

  // Products of such operands, and with many rows, are faster in tiles.
  static bool worth_tiles(int64_t depth, int64_t columns) { return depth >= 32 && columns >= 32; }

 private:
  static int64_t size(int64_t parts, int64_t depth, int64_t columns) {
    return parts ? (tiles::size_of_right(parts, depth, columns) + 1) / 2 : depth * padded(columns);
  }
  static constexpr int64_t TURNED = 64;         // columns that are turned in the second-level cache
  static constexpr int64_t SHARED = 128 * 128;  // fewest numbers that are worth several threads

  int64_t parts_;
  Unset memory_;
};

// c = a b
void product(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c, int64_t c_row);
// c = a b + bias, a row of whole vectors
void product_plus(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, const float* bias, float* c, int64_t c_row);
// c += a b
void add_product(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c, int64_t c_row);

// Products of matrices that lie in the caches.
//
//   product(rows, columns, depth, a, b, c): c (rows, columns) (+)= a (rows, depth) b (depth, columns)
//
// `b` and `c` have rows of whole vectors; b is scratch memory, or packed once with `Packed`. `a` may be read with any
// strides, so that a transposed product needs no copy.
#pragma once

#include <memory>
#include <new>

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

// (depth, columns) in panels or tiles, padded with zeros, from a matrix with any strides.
class Packed {
 public:
  Packed(const float* p, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride)
      : parts_(worth_tiles(depth, columns) ? tiles::parts() : 0), memory_(size(parts_, depth, columns)) {
    if (parts_) {
      const auto to = reinterpret_cast<tiles::half*>(static_cast<float*>(memory_));
      if (column_stride == 1) {
        tiles::split_right(parts_, p, depth_stride, depth, columns, to);
        return;
      }
      const int64_t row = padded(columns);
      const Scratch copy(depth * row);
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t j = 0; j < columns; ++j) copy[k * row + j] = p[k * depth_stride + j * column_stride];
      tiles::split_right(parts_, copy, row, depth, columns, to);
      return;
    }

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
  operator Right() const { return {memory_, 0, parts_}; }

  // Products of such operands, and with many rows, are faster in tiles.
  static bool worth_tiles(int64_t depth, int64_t columns) { return depth >= 32 && columns >= 32; }

 private:
  static int64_t size(int64_t parts, int64_t depth, int64_t columns) {
    return parts ? (tiles::size_of_right(parts, depth, columns) + 1) / 2 : depth * padded(columns);
  }
  int64_t parts_;
  Scratch memory_;
};

// c = a b
void product(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c, int64_t c_row);
// c = a b + bias, a row of whole vectors
void product_plus(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, const float* bias, float* c, int64_t c_row);
// c += a b
void add_product(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c, int64_t c_row);

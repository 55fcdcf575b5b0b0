// The products of tiles.h.
//
// A tile register holds 16 rows of 64 bytes. One instruction multiplies 16 rows of a by 16 columns of b, 32 terms each,
// and adds that to 16 x 16 sums; both lie in it as pairs of terms, b as rows of pairs. Operands are laid out as their
// tiles are read: for each 16 rows (columns) the parts of 32 terms, one behind the other, then those of the next 32. The
// terms that are left over are put side by side, as many products of parts in one tile as there is room for:
//
//   a1 a1 a1 a2 a2 a3  times  b1 b2 b3 b1 b2 b1
#include "tiles.h"

#include <atomic>
#include <type_traits>
#include <vector>

#include "native.h"
#include "products.h"

namespace tiles {
namespace {
std::atomic<int64_t> chosen{0};
}
int64_t parts() { return HAS_TILES ? chosen.load(std::memory_order_relaxed) : 0; }
}  // namespace tiles

#if HAS_TILES

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__clang__)  // which takes these instructions in no other function
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16"))), apply_to = function)
#endif

namespace {

using tiles::half;

constexpr int64_t SIDE = 16;            // rows of a tile, and columns of a tile of sums
constexpr int64_t TERMS = 32;           // that one instruction multiplies
constexpr int64_t TILE = SIDE * TERMS;  // numbers of a tile
constexpr int64_t BYTES = TERMS * sizeof(half);  // of a row of a tile
constexpr int64_t FLOAT = sizeof(float);
constexpr int64_t MOST = 4;             // tiles of rows that are split before they are multiplied,
constexpr int64_t CHUNK = 2;            // and how many times 32 of their terms, or up to twice that

template <int N>
using Number = std::integral_constant<int, N>;

// Instructions of the matrix unit; the compiler's own names for them take no template's number.
template <int TO>
INLINE void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0, %1, 1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(TO) : "memory");
}
template <int FROM>
INLINE void store_tile(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0, %1, 1)" ::"r"(p), "r"(stride), "i"(FROM) : "memory");
}
template <int SUMS, int A, int B>
INLINE void multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(B));
}

// The tile registers are in use while one of these lives.
class Registers {
 public:
  Registers() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int tile = 0; tile < 8; ++tile) shape.bytes[tile] = BYTES, shape.rows[tile] = SIDE;
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~Registers() { asm volatile("tilerelease"); }
  Registers(const Registers&) = delete;
  Registers& operator=(const Registers&) = delete;
};

// The next part of two vectors as pairs, an element of `low` and one of `high`; what is left stays in them. Parts are
// rounded, but the last, which takes what fits, so that a NaN of any bits is in one of them.
template <bool LAST>
INLINE vec next_pairs(vec& low, vec& high) {
  const auto next = [](vec& x) {
    const words bits = reinterpret_cast<words>(x), part = (LAST ? bits : bits + 0x8000u) & 0xFFFF0000u;
    x -= reinterpret_cast<vec>(part);
    return part;
  };
  const words lower = next(low), upper = next(high);
  return reinterpret_cast<vec>(lower >> 16 | upper);
}

// All parts: each(part, pairs).
template <int PARTS, int PART = 0, typename Each>
INLINE void split(vec low, vec high, const Each& each) {
  each(Number<PART>(), next_pairs<PART + 1 == PARTS>(low, high));
  if constexpr (PART + 1 < PARTS) split<PARTS, PART + 1>(low, high, each);
}

// Where the terms of an operand of PARTS parts lie. Pairs are terms 16 apart, and of those that are left over terms
// `pairs` apart.
template <int PARTS>
struct Layout {
  static constexpr int PRODUCTS = PARTS * (PARTS + 1) / 2;

  int64_t depth, whole, rest;  // terms; how many times 32 of them; how many more
  int64_t pairs, tails;        // of those, and their tiles

  explicit Layout(int64_t depth)
      : depth(depth), whole(depth / TERMS), rest(depth % TERMS), pairs((rest + 1) / 2),
        tails((PRODUCTS * pairs + SIDE - 1) / SIDE) {}

  int64_t size() const { return (whole * PARTS + tails) * TILE; }  // numbers of 16 rows or columns
  half* at(half* to, int64_t step, int part) const { return to + (step * PARTS + part) * TILE; }
  half* tail(half* to, int64_t number) const { return to + (whole * PARTS + number) * TILE; }

  // each(product, part of a, part of b)
  template <typename Each>
  static INLINE void products(const Each& each) {
    int product = 0;
    UNROLL for (int a = 0; a < PARTS; ++a) {
      UNROLL for (int b = 0; b < PARTS - a; ++b) each(product++, a, b);
    }
  }
};

INLINE void put(half* to, vec pairs) { store(reinterpret_cast<float*>(to), pairs); }

// `rows` rows of a left operand, whose terms lie side by side.
template <int PARTS>
void split_rows(const float* a, int64_t a_row, int64_t rows, const Layout<PARTS>& layout, half* to) {
  const Tail low_tail(layout.pairs), high_tail(layout.rest - layout.pairs);  // 16 or fewer
  for (int64_t i = 0; i < rows; ++i, a += a_row, to += TERMS) {
    const float* p = a;
    for (int64_t step = 0; step < layout.whole; ++step, p += TERMS)
      split<PARTS>(load(p), load(p + LANES), [&](int part, vec pairs) { put(layout.at(to, step, part), pairs); });
    if (!layout.rest) continue;

    vec parts[PARTS];
    const vec high = high_tail.whole ? load(p + layout.pairs) : high_tail.load(p + layout.pairs);
    split<PARTS>(low_tail.whole ? load(p) : low_tail.load(p), high, [&](int part, vec pairs) { parts[part] = pairs; });
    // A pair each; the zeros behind those of a product give way to the next.
    float side_by_side[(Layout<PARTS>::PRODUCTS + 1) * LANES] = {};
    Layout<PARTS>::products([&](int product, int k, int) { store(side_by_side + product * layout.pairs, parts[k]); });
    for (int64_t tile = 0; tile < layout.tails; ++tile) put(layout.tail(to, tile), load(side_by_side + tile * LANES));
  }
}

// 16 rows of a left or columns of a right operand, or fewer, that lie side by side, terms `stride` apart, to tiles of rows
// of pairs: as those of a right operand are, and those of a left one turned.
template <int PARTS, bool LEFT>
void split_across(const float* p, int64_t stride, int64_t width, const Layout<PARTS>& layout, half* to) {
  const Tail tail(width);
  const auto read = [&](int64_t term) {
    if (term >= layout.depth) return zeros();
    return tail.rest ? tail.load(p + term * stride) : load(p + term * stride);
  };
  for (int64_t step = 0; step < layout.whole; ++step) {
    for (int64_t j = 0; j < SIDE; ++j) {
      const int64_t term = step * TERMS + j;
      const auto store_part = [&](int part, vec pairs) { put(layout.at(to, step, part) + j * TERMS, pairs); };
      split<PARTS>(read(term), read(term + SIDE), store_part);
    }
  }
  if (!layout.rest) return;

  half* const tails = layout.tail(to, 0);
  for (int64_t j = 0; j < layout.pairs; ++j) {
    vec parts[PARTS];
    const int64_t term = layout.whole * TERMS + j;
    split<PARTS>(read(term), read(term + layout.pairs), [&](int part, vec pairs) { parts[part] = pairs; });
    Layout<PARTS>::products([&](int product, int of_left, int of_right) {
      put(tails + (product * layout.pairs + j) * TERMS, parts[LEFT ? of_left : of_right]);
    });
  }
  const int64_t used = Layout<PARTS>::PRODUCTS * layout.pairs * TERMS;
  std::memset(tails + used, 0, (layout.tails * TILE - used) * sizeof(half));
}

// Rows of a left operand, 16 or fewer, that lie side by side, terms `a_term` apart.
template <int PARTS>
void split_columns(const float* a, int64_t a_term, int64_t rows, const Layout<PARTS>& layout, half* to) {
  split_across<PARTS, true>(a, a_term, rows, layout, to);
  for (half* tile = to; tile < to + layout.size(); tile += TILE) {
    vec turned[LANES];
    UNROLL for (int i = 0; i < LANES; ++i) turned[i] = load(reinterpret_cast<const float*>(tile + i * TERMS));
    transpose(turned);
    UNROLL for (int i = 0; i < LANES; ++i) put(tile + i * TERMS, turned[i]);
  }
}

template <int PARTS>
void split_right_of(const float* b, int64_t b_row, int64_t columns, const Layout<PARTS>& layout, half* to) {
  for (int64_t first = 0; first < columns; first += SIDE, to += layout.size())
    split_across<PARTS, false>(b + first, b_row, std::min(columns - first, SIDE), layout, to);
}

// each(i, j) for DOWN rows and ACROSS columns of tiles.
template <int DOWN, int ACROSS, int TILE_NUMBER = 0, typename Each>
INLINE void for_tiles(const Each& each) {
  each(Number<TILE_NUMBER / ACROSS>(), Number<TILE_NUMBER % ACROSS>());
  if constexpr (TILE_NUMBER + 1 < DOWN * ACROSS) for_tiles<DOWN, ACROSS, TILE_NUMBER + 1>(each);
}

// DOWN x ACROSS tiles of sums, four or fewer, which stay in registers: c = a b + bias, a row of numbers or null. Tiles of
// a, of b lie `a_size`, `b_size` numbers apart.
template <int PARTS, int DOWN, int ACROSS>
void block(const Layout<PARTS>& layout, const half* a, int64_t a_size, const half* b, int64_t b_size, const float* bias,
           float* c, int64_t c_row) {
  // Two registers for tiles of a, two for tiles of b. Where there are more of one, they are loaded again.
  const auto load_a = [&](const half* from, auto i) { load_tile<4 + i % 2>(from + i * a_size, BYTES); };
  const auto load_b = [&](const half* from, auto j) { load_tile<6 + j % 2>(from + j * b_size, BYTES); };
  const auto multiply = [&](const half* left, const half* right, bool new_left, bool new_right) {
    for_tiles<DOWN, ACROSS>([&](auto i, auto j) {
      if (j == 0 && (new_left || DOWN > 2)) load_a(left, i);
      if (i == 0 && (new_right || ACROSS > 2)) load_b(right, j);
      multiply_add<i * ACROSS + j, 4 + i % 2, 6 + j % 2>();
    });
  };

  for_tiles<DOWN, ACROSS>([&](auto i, auto j) {
    constexpr int SUMS = i * ACROSS + j;
    if (bias) load_tile<SUMS>(bias + j * SIDE, 0);  // the same row for all
    else asm volatile("tilezero %%tmm%c0" ::"i"(SUMS));
  });

  // Products of parts in an order in which one follows another with the same part of a or of b, the largest late.
  for (int64_t step = 0; step < layout.whole; ++step, a += PARTS * TILE, b += PARTS * TILE) {
    const half *a1 = a, *a2 = a + TILE, *b1 = b, *b2 = b + TILE;
    if constexpr (PARTS == 2) {
      multiply(a1, b2, true, true);
      multiply(a1, b1, false, true);
      multiply(a2, b1, true, false);
    } else {
      multiply(a1, b + 2 * TILE, true, true);
      multiply(a1, b2, false, true);
      multiply(a2, b2, true, false);
      multiply(a2, b1, false, true);
      multiply(a + 2 * TILE, b1, true, false);
      multiply(a1, b1, true, false);
    }
  }
  for (int64_t tile = 0; tile < layout.tails; ++tile, a += TILE, b += TILE) multiply(a, b, true, true);

  for_tiles<DOWN, ACROSS>([&](auto i, auto j) {
    store_tile<i * ACROSS + j>(c + i * SIDE * c_row + j * SIDE, c_row * FLOAT);
  });
}

// Memory of a thread, aligned, that grows and stays.
template <typename T>
class Kept {
 public:
  T* of(int64_t numbers) {
    const std::size_t bytes = numbers * sizeof(T) + 64;
    if (memory_.size() < bytes) memory_.resize(bytes);
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64);
  }

 private:
  std::vector<char> memory_;
};

// 16 rows or fewer of a left operand.
template <int PARTS>
void split_left(const Left& a, int64_t first, int64_t rows, const Layout<PARTS>& layout, half* to) {
  const float* p = a.p + first * a.row;
  if (a.depth == 1) return split_rows(p, a.row, rows, layout, to);
  if (a.row == 1) return split_columns(p, a.depth, rows, layout, to);

  const int64_t row = padded(layout.depth);
  thread_local Kept<float> memory;
  float* copy = memory.of(SIDE * row);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < layout.depth; ++k) copy[i * row + k] = p[i * a.row + k * a.depth];
  split_rows(copy, row, rows, layout, to);
}

template <int PARTS>
void product_in(int64_t rows, int64_t columns, int64_t depth, const Left& a, const half* b, const float* bias, bool add,
                float* c, int64_t c_row) {
  const Layout<PARTS> whole(depth);
  const int64_t b_size = whole.size(), across = (columns + SIDE - 1) / SIDE, even_across = across / 2 * 2;
  const int64_t chunks = std::max<int64_t>(whole.whole / CHUNK, 1);
  thread_local Kept<half> memory;
  half* left = memory.of(MOST * (2 * CHUNK * PARTS + Layout<PARTS>::PRODUCTS) * TILE);
  alignas(64) float sums[4 * SIDE * SIDE];

  const Registers registers;
  for (int64_t first = 0; first < rows; first += MOST * SIDE) {
    const int64_t some = std::min(rows - first, MOST * SIDE), down = (some + SIDE - 1) / SIDE, even_down = down / 2 * 2;

    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t begin = whole.whole * chunk / chunks, end = whole.whole * (chunk + 1) / chunks;
      const Layout<PARTS> layout(chunk + 1 == chunks ? depth - begin * TERMS : (end - begin) * TERMS);
      const int64_t a_size = layout.size();
      const Left terms = {a.p + first * a.row + begin * TERMS * a.depth, a.row, a.depth};
      for (int64_t i = 0; i < some; i += SIDE)
        split_left(terms, i, std::min(some - i, SIDE), layout, left + i / SIDE * a_size);

      // Tiles of results from row i and column j on, both in tiles. To what is there, sums that are whole are added.
      const bool fresh = chunk == 0 && !add;
      const auto make = [&](int64_t i, int64_t j, auto down, auto across) {
        constexpr int DOWN = down, ACROSS = across;
        const int64_t here = std::min(some - i * SIDE, DOWN * SIDE);
        const bool direct = fresh && here == DOWN * SIDE;
        float* at = c + (first + i * SIDE) * c_row + j * SIDE;
        block<PARTS, DOWN, ACROSS>(layout, left + i * a_size, a_size, b + j * b_size + begin * PARTS * TILE, b_size,
                                   fresh && bias ? bias + j * SIDE : nullptr, direct ? at : sums,
                                   direct ? c_row : ACROSS * SIDE);
        if (direct) return;
        for (int64_t row = 0; row < here; ++row) {
          UNROLL for (int64_t n = 0; n < ACROSS * SIDE; n += LANES) {
            float* to = at + row * c_row + n;
            const vec value = load(sums + row * ACROSS * SIDE + n);
            store(to, fresh ? value : load(to) + value);
          }
        }
      };

      for (int64_t j = 0; j < even_across; j += 2)  // the tiles of a stay in the first-level cache
        for (int64_t i = 0; i < even_down; i += 2) make(i, j, Number<2>(), Number<2>());

      if (across > even_across) {  // a single column of tiles, then a single row of them, four at once
        if (even_down == 4) make(0, even_across, Number<4>(), Number<1>());
        if (even_down == 2) make(0, even_across, Number<2>(), Number<1>());
      }
      if (down > even_down) {
        int64_t j = 0;
        for (; j + 4 <= across; j += 4) make(even_down, j, Number<1>(), Number<4>());
        if (across - j == 3) make(even_down, j, Number<1>(), Number<3>());
        if (across - j == 2) make(even_down, j, Number<1>(), Number<2>());
        if (across - j == 1) make(even_down, j, Number<1>(), Number<1>());
      }
    }
  }
}

}  // namespace

namespace tiles {

int64_t size_of_right(int64_t parts, int64_t depth, int64_t columns) {
  const int64_t across = (columns + SIDE - 1) / SIDE;
  return across * (parts == 2 ? Layout<2>(depth).size() : Layout<3>(depth).size());
}

void split_right(int64_t parts, const float* b, int64_t row, int64_t depth, int64_t columns, half* to) {
  if (parts == 2) split_right_of(b, row, columns, Layout<2>(depth), to);
  else split_right_of(b, row, columns, Layout<3>(depth), to);
}

void product(int64_t parts, int64_t rows, int64_t columns, int64_t depth, const Left& a, const half* b, const float* bias,
             bool add, float* c, int64_t c_row) {
  if (parts == 2) product_in<2>(rows, columns, depth, a, b, bias, add, c, c_row);
  else product_in<3>(rows, columns, depth, a, b, bias, add, c, c_row);
}

void product_of(int64_t parts, int64_t rows, int64_t columns, int64_t depth, const Left& a, const float* b, int64_t b_row,
                const float* bias, bool add, float* c, int64_t c_row) {
  thread_local Kept<half> memory;
  half* right = memory.of(size_of_right(parts, depth, columns));
  split_right(parts, b, b_row, depth, columns, right);
  product(parts, rows, columns, depth, a, right, bias, add, c, c_row);
}

}  // namespace tiles

namespace {

// Whether the processor has the instructions, and the system lets this process use the registers.
bool allowed() {
  static const bool found = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    const bool tiles = edx >> 24 & 1, bfloat16 = edx >> 22 & 1;
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // of Linux: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return tiles && bfloat16 && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  }();
  return found;
}

}  // namespace

void use_tiles(int64_t parts, int64_t* used) {
  tiles::chosen = *used = parts && allowed() ? parts : 0;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

namespace tiles {

int64_t size_of_right(int64_t, int64_t, int64_t) { return 0; }
void split_right(int64_t, const float*, int64_t, int64_t, int64_t, half*) {}
void product(int64_t, int64_t, int64_t, int64_t, const Left&, const half*, const float*, bool, float*, int64_t) {}
void product_of(int64_t, int64_t, int64_t, int64_t, const Left&, const float*, int64_t, const float*, bool, float*, int64_t) {}

}  // namespace tiles

void use_tiles(int64_t, int64_t* used) { *used = 0; }

#endif

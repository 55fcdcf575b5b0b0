// Windows of volumes with queries in the lanes of vectors; where they lie is for windows.h to say.
#pragma once

#include <cfloat>

#include "windows.h"

constexpr int VECTORS = 2;               // of queries whose scores with all keys are made at once
constexpr int64_t BLOCK = VECTORS * LANES;
constexpr int64_t FEW = 32;              // windows whose sums are put together first
constexpr float LOG2_E = 1.44269504f;

// Windows of all images, head by head, dealt to parts.
struct HeadParts {
  const WindowedCall& call;
  int64_t count, unit;  // parts; windows that are dealt together

  HeadParts(const WindowedCall& call, int64_t threads)
      : call(call), unit(call.has_halo() ? call.windows : 1) {
    count = std::max<int64_t>(1, std::min(threads, call.heads * call.windows / std::max<int64_t>(unit, 1)));
  }

  // What parts have of heads, numbered.
  int64_t runs() const { return call.heads + count; }
  int64_t run(int64_t part, int64_t head) const { return part + head; }

  // begin(head), walk(head, image, window of each axis) for all windows of a part, end(head).
  template <typename Begin, typename Walk, typename End>
  void of(int64_t part, const Begin& begin, const Walk& walk, const End& end) const {
    const Axis &z = call.z, &y = call.y, &x = call.x;
    for (int64_t at = first(part); at < first(part + 1);) {
      const int64_t head = at / call.windows, last = std::min(first(part + 1), (head + 1) * call.windows);
      begin(head);
      for (; at < last; ++at) {
        const int64_t window = at % call.windows, row = window / x.count, slice = row / y.count;
        const int64_t places[] = {slice % z.count, row % y.count, window % x.count};
        walk(head, slice / z.count, places);
      }
      end(head);
    }
  }
  // visit(run) for every part that has something of a head.
  template <typename Visit>
  void of_head(int64_t head, const Visit& visit) const {
    for (int64_t part = 0; part < count; ++part)
      if (first(part) < (head + 1) * call.windows && first(part + 1) > head * call.windows) visit(run(part, head));
  }

 private:
  int64_t first(int64_t part) const {
    return unit ? call.heads * call.windows / unit * part / count * unit : 0;
  }
};

// The bias of a head, a row of queries for every key, times log2(e).
//
// Of a table whose entries go on by one from slice to slice of queries, rows of all keys in one line along the depth lie in
// one: [keys in y and x, entries in z, queries in y and x], and a key's row begins at its first entry. Windows of 7 x 7 x 7
// have a quarter of the numbers so.
struct LaneBias {
  const WindowedCall& call;
  const bool compact;
  int64_t size;                // numbers
  std::vector<int64_t> begin;  // of every key's row
  Scratch numbers;

  explicit LaneBias(const WindowedCall& call)
      : call(call), compact(call.table && call.z.p == 1), size(numbers_of(call, compact)), numbers(call.bias ? size : 2 * lanes(call)) {
    const int64_t plane = call.y.reach() * call.x.reach(), queries = call.y.window * call.x.window;
    for (int64_t key = 0; key < call.keys; ++key) {
      if (!call.bias) begin.push_back(0);
      else if (!compact) begin.push_back(key * lanes(call));
      else begin.push_back((key % plane * call.z.offsets() + call.z.offset(0, key / plane)) * queries);
    }
  }
  int64_t first(int64_t key) const { return begin[key]; }
  const float* row(int64_t key) const { return numbers + begin[key]; }

  void read(int64_t head) {
    if (!call.bias) return;
    if (!call.table) {
      turn(call.bias + head * call.bias_numbers(), call.keys, call.queries, call.keys, LOG2_E, numbers, lanes(call));
      return;
    }
    std::vector<float> own(call.bias_numbers());
    for (std::size_t number = 0; number < own.size(); ++number) own[number] = call.bias[number * call.heads + head] * LOG2_E;
    walk([&](int64_t here, int64_t number) { numbers[here] = own[number]; });
  }
  // The bias's own numbers, of sums that lie as the rows do; into zeros.
  void hand_back(const float* sums, float* to) const {
    if (!call.table) turn(sums, lanes(call), call.keys, call.queries, 1.0f, to, call.keys);
    else walk([&](int64_t here, int64_t number) { to[number] += sums[here]; });
  }

 private:
  static int64_t lanes(const WindowedCall& call) { return (call.queries + BLOCK - 1) / BLOCK * BLOCK; }
  static int64_t numbers_of(const WindowedCall& call, bool compact) {
    if (!compact) return call.keys * lanes(call);
    return call.y.reach() * call.x.reach() * call.z.offsets() * call.y.window * call.x.window + BLOCK;
  }

  // visit(number of a row, entry of the table)
  template <typename Visit>
  void walk(const Visit& visit) const {
    const Axis &z = call.z, &y = call.y, &x = call.x;
    if (!compact) {
      for (int64_t key = 0; key < call.keys; ++key)
        for (int64_t query = 0; query < call.queries; ++query)
          visit(begin[key] + query, call.query_entry[query] + call.key_entry[key]);
      return;
    }
    int64_t here = 0;
    for (int64_t key = 0; key < y.reach() * x.reach(); ++key) {
      for (int64_t in_z = 0; in_z < z.offsets(); ++in_z) {
        for (int64_t b = 0; b < y.window; ++b) {
          const int64_t row = in_z * y.offsets() + y.offset(b, key / x.reach());
          const int64_t from = row * x.offsets() + x.offset(0, key % x.reach());
          for (int64_t c = 0; c < x.window; ++c) visit(here + c, from + c * x.p);
          here += x.window;
        }
      }
    }
  }
};

// A window as it was found, and its tokens' heads in and out of maps.
struct LaneWindow {
  const WindowedCall& call;
  const int64_t row;           // queries in whole blocks
  std::vector<int64_t> place;  // of keys that some query may see: which of all keys they are

  explicit LaneWindow(const WindowedCall& call)
      : call(call), row((call.queries + BLOCK - 1) / BLOCK * BLOCK), window_(call), query_(row, -1), masks_(8 * row),
        zeros_(call.d_row), outside_(2 * call.d_row) {}

  int64_t keys() const { return static_cast<int64_t>(place.size()); }

  void find(int64_t image, const int64_t* at) {
    window_.find(image, at[0], at[1], at[2]);
    std::fill(query_.begin(), query_.end(), -1);
    for (const Window::Query& query : window_.queries) query_[query.place] = query.token;
    place.clear(), token_.clear(), mask_.clear();
    bool seen[8] = {};
    for (std::size_t key = 0; key < window_.keys.size(); ++key) {
      if (!window_.sees(static_cast<int64_t>(key))) continue;
      place.push_back(static_cast<int64_t>(key)), token_.push_back(window_.keys[key]);
      mask_.push_back(window_.codes[key] * row);
      seen[window_.codes[key]] = true;
    }
    has_mask_ = window_.masked;
    if (!has_mask_) return;
    for (int64_t code = 0; code < 8; ++code) {
      if (!seen[code]) continue;
      clear(masks_ + code * row, row);
      for (const Window::Query& query : window_.queries)
        if (query.code != code) masks_[code * row + query.place] = call.seam * LOG2_E;
    }
  }

  // Whether no query of the block is in the volume.
  bool is_empty(int64_t first) const {
    return std::all_of(query_.begin() + first, query_.begin() + first + BLOCK, [](int64_t token) { return token < 0; });
  }

  // Scores of a key with what the seam adds.
  INLINE vec masked(vec score, int64_t key, int64_t lane) const {
    if (!has_mask_) return score;
    const vec mask = load(masks_ + mask_[key] + lane);
    return mask == -INFINITY ? mask : score + mask;
  }
  INLINE vec unless_hidden(vec slope, int64_t key, int64_t lane) const {  // whatever a NaN has made of them
    if (!has_mask_) return slope;
    return load(masks_ + mask_[key] + lane) == -INFINITY ? zeros() : slope;
  }

  // Rows (queries, d_row); zeros outside the volume.
  void query_rows(const float* from, const Tokens& of, int64_t head, float factor, float* to) const {
    const Tail tail(call.width);
    for (int64_t lane = 0; lane < row; ++lane, to += call.d_row) {
      if (query_[lane] >= 0) read_row(from + of.at(query_[lane], head), tail, factor, to);
      else clear(to, call.d_row);
    }
  }

  // The same as (width, row).
  void queries_across(const float* from, const Tokens& of, int64_t head, float factor, float* to) const {
    for (int64_t first = 0; first < row; first += LANES) {
      const float* rows[LANES];
      for (int lane = 0; lane < LANES; ++lane)
        rows[lane] = query_[first + lane] >= 0 ? from + of.at(query_[first + lane], head) : static_cast<const float*>(zeros_);
      each_columns([&](int64_t c, const auto& read, const auto&, int64_t some) {
        vec square[LANES];
        UNROLL for (int lane = 0; lane < LANES; ++lane) square[lane] = read(rows[lane] + c) * factor;
        transpose(square);
        for (int64_t i = 0; i < some; ++i) store(to + (c + i) * row + first, square[i]);
      });
    }
  }

  // Columns (width, BLOCK) of the block of queries from `first` on, each times its factor, to where they stand.
  void write_across(const float* from, int64_t first, const float* factors, float* to, const Tokens& of, int64_t head) const {
    for (int64_t lane = 0; lane < BLOCK; lane += LANES) {
      const vec factor = load(factors + lane);
      each_columns([&](int64_t c, const auto&, const auto& write, int64_t some) {
        vec square[LANES] = {};
        for (int64_t i = 0; i < some; ++i) square[i] = load(from + (c + i) * BLOCK + lane) * factor;
        transpose(square);
        for (int i = 0; i < LANES; ++i) {
          const int64_t token = query_[first + lane + i];
          if (token >= 0) write(to + of.at(token, head) + c, square[i]);
        }
      });
    }
  }

  // Rows (keys, width), one behind the other; outside the volume those of `pad`, null for zeros.
  void key_rows(const float* from, const Tokens& of, const float* pad, int64_t head, float* to) const {
    const float* outside = pad ? pad + head * call.width : static_cast<const float*>(zeros_);
    each_columns([&](int64_t c, const auto& read, const auto& write, int64_t) {
      float* row = to + c;
      for (int64_t token : token_) {
        write(row, read((token >= 0 ? from + of.at(token, head) : outside) + c));
        row += call.width;
      }
    });
  }

  // Gradients (keys, d_row) to where the keys stand, or to the sums of what lies outside, a few of which are put together
  // first. `add`: other windows see the keys too.
  void write_keys(const float* rows, const Tokens& of, int64_t head, bool add, float* to, float* outside) {
    const Tail tail(call.width);
    float *sums = outside_, *few = outside_ + call.d_row;
    clear(outside_, 2 * call.d_row);
    int64_t summed = 0;
    const auto hand_over = [&](float* from, float* total) {
      add_to(total, from, call.d_row);
      clear(from, call.d_row);
    };
    for (int64_t token : token_) {
      if (token < 0) {
        add_to(few, rows, call.d_row);
        if (++summed % 16 == 0) hand_over(few, sums);
      } else if (add) add_to(to + of.at(token, head), rows, call.width);
      else write_row(rows, tail, 1.0f, to + of.at(token, head));
      rows += call.d_row;
    }
    hand_over(few, sums);
    hand_over(sums, outside);
  }

  // A number of every query and head, the first or the second of two; each lies as (images, heads, queries of the volume).
  void write_numbers(const float* from, int64_t head, int64_t which, float* to) const {
    for (int64_t lane = 0; lane < call.queries; ++lane)
      if (query_[lane] >= 0) to[number_at(query_[lane], head, which)] = from[lane];
  }
  void read_numbers(const float* from, int64_t head, int64_t which, float outside, float* to) const {
    for (int64_t lane = 0; lane < row; ++lane)
      to[lane] = query_[lane] >= 0 ? from[number_at(query_[lane], head, which)] : outside;
  }

  // Sums over the channels of y times its gradient (queries, d_row): what the probabilities' gradients are reduced by.
  void balances(const float* g_rows, const float* y, int64_t head, float* to) const {
    const Tail tail(call.width);
    for (int64_t lane = 0; lane < row; ++lane, g_rows += call.d_row) {
      vec total = zeros();
      if (query_[lane] >= 0) {
        const float* at = y + call.of_y.at(query_[lane], head);
        for (int64_t j = 0; j < tail.whole; j += LANES) total += load(at + j) * load(g_rows + j);
        if (tail.rest) total += tail.load(at + tail.whole) * load(g_rows + tail.whole);
      }
      to[lane] = sum(total);
    }
  }

 private:
  Window window_;
  std::vector<int64_t> query_, token_, mask_;  // tokens of all lanes and of keys, -1 outside; where keys' masks begin
  Scratch masks_, zeros_, outside_;  // [8, row], what is added to the scores of keys of each code; [d_row]; [2, d_row]
  bool has_mask_ = false;

  int64_t number_at(int64_t token, int64_t head, int64_t which) const {
    const int64_t pixels = call.z.query.size * call.y.query.size * call.x.query.size;
    return ((which * call.batch + token / pixels) * call.heads + head) * pixels + token % pixels;
  }

  // walk(first channel, how to read and to write a vector of them, how many there are) for all channels.
  template <typename Walk>
  void each_columns(const Walk& walk) const {
    const Tail tail(call.width);
    const auto read = [](const float* p) { return load(p); };
    const auto write = [](float* p, vec x) { store(p, x); };
    for (int64_t c = 0; c < tail.whole; c += LANES) walk(c, read, write, LANES);
    if (!tail.rest) return;
    const auto read_rest = [&](const float* p) { return tail.load(p); };
    const auto write_rest = [&](float* p, vec x) { tail.store(p, x); };
    walk(tail.whole, read_rest, write_rest, tail.rest);
  }
};

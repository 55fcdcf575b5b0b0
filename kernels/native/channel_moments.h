// Mean and squares about it of every channel of a map, block of rows by block of rows.
//
// A block's sum, then its squares about the block's own mean while it is in the cache. Blocks are put together in their
// order, in double precision: with n, m, s of what is done and b, m_b, s_b of a block
//
//   m' = m + (m_b - m) b / (n + b),  s' = s + s_b + (m_b - m)^2 n b / (n + b)
#pragma once

#include <vector>

#include "products.h"

class ChannelMoments {
 public:
  explicit ChannelMoments(int64_t channels)
      : mean_(channels), squares_(channels), middle_(padded(channels)), rest_(padded(channels)), square_(padded(channels)) {}

  // `rows` rows of x, `x_row` apart.
  void add(const float* x, int64_t x_row, int64_t rows) {
    if (!rows) return;
    const int64_t channels = static_cast<int64_t>(mean_.size());
    const Tail tail(channels);
    for (int64_t c = 0; c < tail.whole; c += LANES) of_block(c, x, x_row, rows, [](const float* p) { return load(p); });
    if (tail.rest) of_block(tail.whole, x, x_row, rows, [&](const float* p) { return tail.load(p); });
    join(rows, [&](int64_t c) { return static_cast<double>(middle_[c]) + rest_[c]; }, [&](int64_t c) { return square_[c]; });
  }

  // What others found in rows of their own.
  void add(const ChannelMoments& other) {
    if (!other.count_) return;
    join(other.count_, [&](int64_t c) { return other.mean_[c]; }, [&](int64_t c) { return other.squares_[c]; });
  }

  // Mean and biased variance; zeros of no rows.
  void write(float* mean, float* var) const {
    for (std::size_t c = 0; c < mean_.size(); ++c) {
      mean[c] = static_cast<float>(mean_[c]);
      var[c] = static_cast<float>(squares_[c] / static_cast<double>(std::max<int64_t>(count_, 1)));
    }
  }

 private:
  // Means, in two parts that are added up in double precision, and squares about them.
  template <typename Read>
  INLINE void of_block(int64_t c, const float* x, int64_t x_row, int64_t rows, const Read& read) {
    const float share = 1.0f / static_cast<float>(rows);
    vec total = zeros();
    for (int64_t r = 0; r < rows; ++r) total += read(x + r * x_row + c);
    const vec middle = total * share;

    vec rest = zeros(), square = zeros();
    for (int64_t r = 0; r < rows; ++r) {
      const vec centred = read(x + r * x_row + c) - middle;
      rest += centred;
      square += centred * centred;
    }
    rest *= share;  // the rounding of the middle itself is taken out again
    store(middle_ + c, middle);
    store(rest_ + c, rest);
    store(square_ + c, square - rest * rest * static_cast<float>(rows));
  }

  template <typename Mean, typename Squares>
  void join(int64_t rows, const Mean& mean, const Squares& squares) {
    const double share = static_cast<double>(rows) / static_cast<double>(count_ + rows);
    for (std::size_t c = 0; c < mean_.size(); ++c) {
      const double change = mean(c) - mean_[c];
      mean_[c] += change * share;
      squares_[c] += squares(c) + change * change * share * static_cast<double>(count_);
    }
    count_ += rows;
  }

  int64_t count_ = 0;
  std::vector<double> mean_, squares_;
  Scratch middle_, rest_, square_;  // of a block
};

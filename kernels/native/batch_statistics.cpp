// Mean and biased variance of every channel of a map, from one read of it.
//
// Blocks of rows: a block's sum, then its squares about the block's own mean while it is in the cache. Blocks are put
// together in their order, in double precision: with n, m, s of what is done and b, m_b, s_b of a block
//
//   m' = m + (m_b - m) b / (n + b),  s' = s + s_b + (m_b - m)^2 n b / (n + b)
#include "native.h"
#include "parallel.h"
#include "products.h"

namespace {

constexpr int64_t BLOCK = 64;  // rows

struct Sums {
  int64_t count = 0;
  std::vector<double> mean, squares;  // [channels]

  explicit Sums(int64_t channels) : mean(channels), squares(channels) {}

  // The moments of `rows` more rows, themselves of mean `other_mean` and sum of squares about it `other_squares`.
  void join(int64_t rows, const double* other_mean, const double* other_squares) {
    if (!rows) return;
    const double share = static_cast<double>(rows) / static_cast<double>(count + rows);
    for (std::size_t c = 0; c < mean.size(); ++c) {
      const double change = other_mean[c] - mean[c];
      mean[c] += change * share;
      squares[c] += other_squares[c] + change * change * share * static_cast<double>(count);
    }
    count += rows;
  }
};

// Means, in two parts that are added up in double precision, and squares about them of a block of rows.
void block_moments(const float* x, int64_t rows, int64_t channels, float* mean, float* rest_of_mean, float* squares) {
  const Tail tail(channels);
  const float share = 1.0f / static_cast<float>(rows);
  const auto column = [&](int64_t c, const auto& value) {
    vec total = zeros();
    for (int64_t r = 0; r < rows; ++r) total += value(x + r * channels + c);
    const vec middle = total * share;

    vec rest = zeros(), square = zeros();
    for (int64_t r = 0; r < rows; ++r) {
      const vec centred = value(x + r * channels + c) - middle;
      rest += centred;
      square += centred * centred;
    }
    rest *= share;  // the rounding of the middle itself is taken out again
    store(mean + c, middle);
    store(rest_of_mean + c, rest);
    store(squares + c, square - rest * rest * static_cast<float>(rows));
  };
  for (int64_t c = 0; c < tail.whole; c += LANES) column(c, [](const float* p) { return load(p); });
  if (tail.rest) column(tail.whole, [&](const float* p) { return tail.load(p); });
}

}  // namespace

void batch_statistics(int64_t threads, const float* x, int64_t rows, int64_t channels, float* mean, float* var) {
  std::vector<Sums> parts(threads, Sums(channels));
  parallel(threads, [&](int64_t part) {
    const Scratch block_mean(padded(channels)), block_rest(padded(channels)), block_squares(padded(channels));
    std::vector<double> block_means(channels), block_sums(channels);
    const int64_t first = rows * part / threads, last = rows * (part + 1) / threads;
    for (int64_t row = first; row < last; row += BLOCK) {
      const int64_t some = std::min(BLOCK, last - row);
      block_moments(x + row * channels, some, channels, block_mean, block_rest, block_squares);
      for (int64_t c = 0; c < channels; ++c) {
        block_means[c] = static_cast<double>(block_mean[c]) + block_rest[c];
        block_sums[c] = block_squares[c];
      }
      parts[part].join(some, block_means.data(), block_sums.data());
    }
  });

  Sums all(channels);
  for (const Sums& part : parts) all.join(part.count, part.mean.data(), part.squares.data());
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = static_cast<float>(all.mean[c]);
    var[c] = static_cast<float>(all.squares[c] / static_cast<double>(std::max<int64_t>(rows, 1)));
  }
}

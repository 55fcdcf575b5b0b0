// A map that is read through a batch norm, n = z gamma + beta with z = (x - mean) rstd, so that the normed map needs no
// pass of its own. Its gradient needs sums over the whole map before that of a pixel:
//
//   dgamma = sum of dn z,  dbeta = sum of dn,  dx = gamma rstd (dn - dbeta / count - z dgamma / count)
#pragma once

#include "products.h"
#include "rows.h"

// A map (count, channels), and the batch norm where there is one: vectors (4, channels), mean, rstd, gamma, beta.
struct Map {
  const float* x;
  int64_t count, channels, row;
  bool norm;
  Row mean, rstd, gamma, beta;

  Map(const float* x, int64_t count, int64_t channels, const float* vectors)
      : x(x), count(count), channels(channels), row(padded(channels)), norm(vectors),
        mean(vectors, channels, 0.0f), rstd(vector(vectors, 1), channels, 1.0f),
        gamma(vector(vectors, 2), channels, 1.0f), beta(vector(vectors, 3), channels, 0.0f) {}

  // `tokens` rows of z, or with `affine` of z gamma + beta; made in scratch (tokens, row) where there is a batch norm.
  Left read(int64_t first, int64_t tokens, bool affine, float* scratch) const {
    const float* from = x + first * channels;
    if (!norm) return {from, channels, 1};
    const Tail tail(channels);
    for (int64_t i = 0; i < tokens; ++i) {
      const auto one = [&](int64_t c, vec value) {
        const vec z = (value - load(mean + c)) * load(rstd + c);
        store(scratch + i * row + c, affine ? z * load(gamma + c) + load(beta + c) : z);
      };
      for (int64_t c = 0; c < tail.whole; c += LANES) one(c, load(from + i * channels + c));
      if (tail.rest) one(tail.whole, tail.load(from + i * channels + tail.whole));
    }
    return {scratch, row, 1};
  }

  // Adds what `tokens` rows of dn (tokens, channels) give to dgamma and dbeta.
  void sum(int64_t first, int64_t tokens, const float* dn, float* d_gamma, float* d_beta) const {
    const Tail tail(channels);
    for (int64_t i = 0; i < tokens; ++i) {
      const float *from = x + (first + i) * channels, *d = dn + i * channels;
      const auto one = [&](int64_t c, vec value, vec slope) {
        const vec z = (value - load(mean + c)) * load(rstd + c);
        store(d_gamma + c, load(d_gamma + c) + slope * z);
        store(d_beta + c, load(d_beta + c) + slope);
      };
      for (int64_t c = 0; c < tail.whole; c += LANES) one(c, load(from + c), load(d + c));
      if (tail.rest) one(tail.whole, tail.load(from + tail.whole), tail.load(d + tail.whole));
    }
  }

  // dx of `tokens` rows from dn (tokens, row); dgamma and dbeta divided by the count.
  void write(int64_t first, int64_t tokens, const float* dn, const float* mean_dgamma, const float* mean_dbeta,
             float* dx) const {
    if (!norm) return copy_rows(dn, row, tokens, channels, dx + first * channels, channels);
    const Tail tail(channels);
    for (int64_t i = 0; i < tokens; ++i) {
      const int64_t at = (first + i) * channels;
      const auto one = [&](int64_t c, vec value) {
        const vec z = (value - load(mean + c)) * load(rstd + c);
        const vec rest = load(dn + i * row + c) - load(mean_dbeta + c) - z * load(mean_dgamma + c);
        return rest * load(gamma + c) * load(rstd + c);
      };
      for (int64_t c = 0; c < tail.whole; c += LANES) store(dx + at + c, one(c, load(x + at + c)));
      if (tail.rest) tail.store(dx + at + tail.whole, one(tail.whole, tail.load(x + at + tail.whole)));
    }
  }

  // Gives dgamma and dbeta (2, row) away to (2, channels), and divides them by the count.
  void hand_out(float* sums, float* d_norm) const {
    if (!norm) return;
    copy_rows(sums, row, 2, channels, d_norm, channels);
    for (int64_t c = 0; c < 2 * row; ++c) sums[c] /= static_cast<float>(std::max<int64_t>(count, 1));
  }

 private:
  const float* vector(const float* vectors, int64_t i) const { return vectors ? vectors + i * channels : nullptr; }
};

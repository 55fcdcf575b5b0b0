// LayerNorm of rows, forward and backward, while a row is in the first-level cache.
//
//   n = (x - mean) rstd,  y = n weight + bias
//   dn = dy weight,  dx = rstd (dn - mean(dn) - n mean(dn n)),  dweight += dy n,  dbias += dy
#pragma once

#include "vectors.h"

struct Moments {
  float mean, rstd;
};

// Of `n` numbers; about the mean, in a second pass, so that a large mean costs no digits.
static INLINE Moments moments(const float* x, int64_t n, const Tail& tail, float eps) {
  vec total = zeros();
  for (int64_t j = 0; j < tail.whole; j += LANES) total += load(x + j);
  if (tail.rest) total += tail.load(x + tail.whole);
  const float mean = sum(total) / static_cast<float>(n);

  vec squares = zeros();
  for (int64_t j = 0; j < tail.whole; j += LANES) {
    const vec centred = load(x + j) - mean;
    squares += centred * centred;
  }
  if (tail.rest) {
    const vec centred = tail.only(tail.load(x + tail.whole) - mean);
    squares += centred * centred;
  }
  return {mean, 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + eps)};
}

// Rows of `n` numbers, `x_row` apart, to rows of whole vectors whose last lanes are 0; without `norm` a copy.
// weight, bias: of whole vectors.
static inline void layer_norm(const float* x, int64_t x_row, int64_t rows, int64_t n, bool norm, const float* weight,
                              const float* bias, float eps, float* y, int64_t y_row) {
  const Tail tail(n);
  for (int64_t row = 0; row < rows; ++row, x += x_row, y += y_row) {
    if (!norm) {
      for (int64_t j = 0; j < tail.whole; j += LANES) store(y + j, load(x + j));
      if (tail.rest) store(y + tail.whole, tail.load(x + tail.whole));
      continue;
    }
    const Moments m = moments(x, n, tail, eps);
    for (int64_t j = 0; j < tail.whole; j += LANES) store(y + j, (load(x + j) - m.mean) * m.rstd * load(weight + j) + load(bias + j));
    if (tail.rest) {
      const int64_t j = tail.whole;
      store(y + j, tail.only((tail.load(x + j) - m.mean) * m.rstd * load(weight + j) + load(bias + j)));
    }
  }
}

// dx = extra + (gradient of the norm at x, of dy); extra, which may be null, has the strides of dx. dy: rows of whole
// vectors. dweight and dbias, of whole vectors, are added to.
static inline void layer_norm_backward(const float* x, int64_t x_row, const float* dy, int64_t dy_row, int64_t rows,
                                       int64_t n, bool norm, const float* weight, float eps, const float* extra,
                                       float* dx, int64_t dx_row, float* dweight, float* dbias) {
  const Tail tail(n);
  for (int64_t row = 0; row < rows; ++row, x += x_row, dy += dy_row, dx += dx_row) {
    Moments m = {0.0f, 1.0f};
    vec total = zeros(), product = zeros();
    const auto add_up = [&](int64_t j, vec value) {
      const vec normed = (value - m.mean) * m.rstd;
      const vec slope = load(dy + j), dn = slope * load(weight + j);
      store(dweight + j, load(dweight + j) + slope * normed);
      store(dbias + j, load(dbias + j) + slope);
      total += dn;
      product += dn * normed;
    };
    if (norm) {
      m = moments(x, n, tail, eps);
      for (int64_t j = 0; j < tail.whole; j += LANES) add_up(j, load(x + j));
      if (tail.rest) add_up(tail.whole, tail.load(x + tail.whole));  // dy is 0 in the other lanes
    }
    const float mean_dn = sum(total) / static_cast<float>(n), mean_product = sum(product) / static_cast<float>(n);

    const auto gradient = [&](int64_t j, vec value) {
      if (!norm) return load(dy + j);
      const vec normed = (value - m.mean) * m.rstd;
      return (load(dy + j) * load(weight + j) - mean_dn - normed * mean_product) * m.rstd;
    };
    for (int64_t j = 0; j < tail.whole; j += LANES) {
      const vec d = gradient(j, load(x + j));
      store(dx + j, extra ? d + load(extra + j) : d);
    }
    if (tail.rest) {
      const int64_t j = tail.whole;
      const vec d = gradient(j, tail.load(x + j));
      tail.store(dx + j, extra ? d + tail.load(extra + j) : d);
    }
    if (extra) extra += dx_row;
  }
}

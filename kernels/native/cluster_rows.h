// A pixel's label, its clustering loss and the gradient of its scores, where its K scores follow one another in memory.
//
//   label = argmax(l)    others = sum of exp(l_k - l_label) over the other clusters    loss = log(1 + others)
//   dl = g (softmax(l) - onehot(label)) = g / (1 + others) (exp(l_k - l_label), at the label -others)
//
// The 1 of the label itself stays out of every sum: small losses and gradients keep their digits. Where a score is NaN
// or the largest is infinite, loss and gradients are NaN.
#pragma once

#include "vectors.h"

// Largest scores so far, and which clusters they are.
struct Best {
  vec score;
  ints cluster;
};

// The better of two, of equals the lower cluster.
static INLINE Best better(Best a, Best b, ints low, ints high) {
  const Best p = {shuffle(a.score, b.score, low), shuffle(a.cluster, b.cluster, low)};
  const Best q = {shuffle(a.score, b.score, high), shuffle(a.cluster, b.cluster, high)};
  const ints second = (q.score > p.score) | ((q.score == p.score) & (q.cluster < p.cluster));
  return {second ? q.score : p.score, second ? q.cluster : p.cluster};
}

// Where a pixel's loss is NaN: its first NaN, as PyTorch's argmax has it, or else the label that was found.
static inline int32_t label_of_nan(const float* scores, int64_t clusters, int64_t stride, int32_t found) {
  for (int64_t k = 0; k < clusters; ++k)
    if (std::isnan(scores[k * stride])) return static_cast<int32_t>(k);
  return found;
}

// exp(l - top) of LANES clusters from `first` on, 0 for the label.
static INLINE vec other_power(vec scores, float top, int32_t label, ints clusters) {
  const vec power = exp_below(scores - top);
  return clusters == label ? zeros() : power;
}

// Losses and labels of up to LANES pixels, `row` apart. Lanes beyond them hold those of the last pixel.
static inline void cluster_rows(const float* scores, int64_t row, int64_t pixels, int64_t clusters, const Tail& tail,
                                vec* losses, int32_t* labels) {
  const ints lanes = lane_numbers();

  Best best[LANES];
  for (int i = 0; i < LANES; ++i) {
    const float* p = scores + std::min<int64_t>(i, pixels - 1) * row;
    Best b = {all(-INFINITY), lanes};
    const auto take = [&](vec score, int64_t k) {
      const ints larger = score > b.score;
      b.score = larger ? score : b.score;
      b.cluster = larger ? lanes + static_cast<int32_t>(k) : b.cluster;
    };
    for (int64_t k = 0; k < tail.whole; k += LANES) take(load(p + k), k);
    if (tail.rest) take(tail.or_else(tail.load(p + tail.whole), -INFINITY), tail.whole);
    best[i] = b;
  }
  across(best, better);
  const vec top = best[0].score;
  std::memcpy(labels, &best[0].cluster, sizeof(ints));

  vec others[LANES];
  for (int i = 0; i < LANES; ++i) {
    const float *p = scores + std::min<int64_t>(i, pixels - 1) * row, most = top[i];
    vec sum = zeros();
    for (int64_t k = 0; k < tail.whole; k += LANES)
      sum += other_power(load(p + k), most, labels[i], lanes + static_cast<int32_t>(k));
    if (tail.rest) {
      const int64_t k = tail.whole;
      sum += tail.only(other_power(tail.load(p + k), most, labels[i], lanes + static_cast<int32_t>(k)));
    }
    others[i] = sum;
  }
  *losses = log1p(sums_across(others)) + (top - top);

  for (int64_t i = 0; i < pixels; ++i)
    if (std::isnan((*losses)[i])) labels[i] = label_of_nan(scores + i * row, clusters, 1, labels[i]);
}

// Gradients of the scores of up to LANES pixels, `row` and `out_row` apart, from those of their losses. `out` may be
// `scores`.
static inline void cluster_gradient_rows(const float* scores, int64_t row, int64_t pixels, const Tail& tail,
                                         const int32_t* labels, const float* slopes, float* out, int64_t out_row) {
  const ints lanes = lane_numbers();
  vec others[LANES] = {};
  for (int64_t i = 0; i < pixels; ++i) {
    const float *p = scores + i * row, most = p[labels[i]];
    float* to = out + i * out_row;
    vec sum = zeros();
    for (int64_t k = 0; k < tail.whole; k += LANES) {
      const vec power = other_power(load(p + k), most, labels[i], lanes + static_cast<int32_t>(k));
      store(to + k, power);
      sum += power;
    }
    if (tail.rest) {
      const int64_t k = tail.whole;
      const vec power = tail.only(other_power(tail.load(p + k), most, labels[i], lanes + static_cast<int32_t>(k)));
      tail.store(to + k, power);
      sum += power;
    }
    others[i] = sum + (most - most);
  }
  const vec total = sums_across(others), shares = 1.0f / (total + 1.0f);

  for (int64_t i = 0; i < pixels; ++i) {
    float* to = out + i * out_row;
    const float factor = slopes[i] * shares[i];
    for (int64_t k = 0; k < tail.whole; k += LANES) store(to + k, load(to + k) * factor);
    if (tail.rest) tail.store(to + tail.whole, tail.load(to + tail.whole) * factor);
    to[labels[i]] = -total[i] * factor;
  }
}

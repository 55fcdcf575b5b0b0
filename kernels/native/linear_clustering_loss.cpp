// The clustering loss of scores l = x W^T + b, forward and backward; the scores are never in memory.
//
//   dx = dl W        dW = dl^T x        db = sum of dl
//
// with a pixel's loss, label and dl as in cluster_rows.h. A block of pixels passes through all products while it is in
// the cache; the backward makes its scores again. Sums over pixels: of a block first, then of the part, then of all parts
// in their order.
#include "cluster_rows.h"
#include "labels.h"
#include "native.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"

namespace {

constexpr int64_t BLOCK = 96;       // pixels
constexpr int64_t SHORT = 2 * BLOCK;  // fewest pixels that are worth a part

// Scores [n, k_row] of a block of pixels.
struct Scores {
  int64_t channels, clusters, k_row;
  Packed weight;  // (D, K)
  Row bias;
  Tail tail;

  Scores(const float* weight, const float* bias, int64_t channels, int64_t clusters)
      : channels(channels), clusters(clusters), k_row(padded(clusters)), weight(weight, channels, clusters, 1, channels),
        bias(bias, clusters, 0.0f), tail(clusters) {}
  void make(const float* x, int64_t n, float* scores) const {
    product_plus(n, clusters, channels, {x, channels, 1}, weight, bias, scores, k_row);
  }
};

}  // namespace

void linear_clustering_loss_forward(int64_t threads, const float* features, int64_t batch, int64_t pixels,
                                    int64_t channels, int64_t clusters, const float* weight, const float* bias,
                                    int64_t mean, float* losses, float* loss, void* labels, int64_t label_bytes,
                                    void* label_count) {
  const Scores scores(weight, bias, channels, clusters);
  const Parts parts(threads, batch, pixels, SHORT);
  const int64_t k_row = scores.k_row;
  Found found(parts, clusters, losses, labels, label_bytes);

  parallel(threads, parts.count(), [&](int64_t part) {
    const Scratch block(BLOCK * k_row);
    float some_losses[LANES];
    int32_t some_labels[LANES];

    parts.of(part, BLOCK, [&](int64_t begin, int64_t n) {
      scores.make(features + begin * channels, n, block);  // [n, K]

      for (int64_t i = 0; i < n; i += LANES) {
        const int64_t some = std::min<int64_t>(LANES, n - i), at = begin + i;
        vec loss_of;
        cluster_rows(block + i * k_row, k_row, some, clusters, scores.tail, &loss_of, some_labels);
        store(some_losses, loss_of);

        found.put(part, at, some_losses, some_labels, some);
      }
    });
  });
  found.finish(mean, loss, label_count);
}

void linear_clustering_loss_backward(int64_t threads, const float* features, int64_t batch, int64_t pixels,
                                     int64_t channels, int64_t clusters, const float* weight, const float* bias,
                                     const void* labels, int64_t label_bytes, const float* grad, int64_t per_pixel,
                                     float divisor, float* d_features, float* d_weight, float* d_bias) {
  const Scores scores(weight, bias, channels, clusters);
  const Packed weight_back(weight, clusters, channels, channels, 1);  // (K, D)
  const Parts parts(threads, batch, pixels, SHORT);
  const Given given{labels, label_bytes, grad, per_pixel != 0, divisor};
  const int64_t k_row = scores.k_row, c_row = padded(channels), size = (channels + 1) * k_row;
  const Scratch partial(std::max<int64_t>(parts.count(), 1) * size);  // of a part: dW (D, K) and db

  parallel(threads, parts.count(), [&](int64_t part) {
    float *sums = partial + part * size, *bias_sums = sums + channels * k_row;
    const Scratch block(BLOCK * k_row), d_block(BLOCK * c_row), row(k_row);
    int32_t some_labels[LANES];
    float slopes[LANES];

    parts.of(part, BLOCK, [&](int64_t begin, int64_t n) {
      const float* x = features + begin * channels;
      scores.make(x, n, block);  // [n, K]

      for (int64_t i = 0; i < n; i += LANES) {  // dl, in the place of the scores
        const int64_t some = std::min<int64_t>(LANES, n - i), at = begin + i;
        given.read(at, some, some_labels, slopes);
        float* p = block + i * k_row;
        cluster_gradient_rows(p, k_row, some, scores.tail, some_labels, slopes, p, k_row);
      }

      add_product(channels, clusters, n, {x, 1, channels}, {block, k_row}, sums, k_row);        // [D, K]
      add_rows(block, k_row, n, clusters, row, bias_sums);
      product(n, channels, clusters, {block, k_row, 1}, weight_back, d_block, c_row);           // [n, D]
      copy_rows(d_block, c_row, n, channels, d_features + begin * channels, channels);
    });
  });

  for (int64_t part = 1; part < parts.count(); ++part) add_to(partial, partial + part * size, size);
  for (int64_t k = 0; k < clusters; ++k)
    for (int64_t c = 0; c < channels; ++c) d_weight[k * channels + c] = partial[c * k_row + k];
  copy_row(partial + channels * k_row, clusters, d_bias);
}

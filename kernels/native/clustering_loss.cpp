// The clustering loss of every pixel, labels and label count from one read of the logits; its gradient from one read and
// one write. The mathematics of a pixel: cluster_rows.h.
//
// Where a pixel's clusters are neighbours in memory, a pixel is a row. Where pixels are neighbours, a block of them
// passes cluster by cluster, while it is in the second-level cache:
//
//   forward: the largest of the clusters, then the powers of the others about it; backward: the powers about the logit
//   of the label, which the forward found, into the gradient; there they are scaled
#include "cluster_rows.h"
#include "labels.h"
#include "native.h"
#include "parallel.h"
#include "products.h"

namespace {

constexpr int64_t SHORT = 256;         // fewest pixels that are worth a part
constexpr int64_t CACHE = 100 * 1024;  // numbers of a block, its logits and their gradient

// Logits or their gradient, (images, rows, columns, clusters).
template <typename Number>
struct Map {
  Number* p;
  int64_t image, row, column, cluster;  // strides
  Number* at(int64_t b, int64_t h, int64_t w) const { return p + b * image + h * row + w * column; }
};

// Pixels of a block where pixels are neighbours: whole vectors.
int64_t block_of(int64_t clusters) {
  return std::min<int64_t>(1024, std::max<int64_t>(1, CACHE / (2 * clusters) / LANES) * LANES);
}

// each(pixel, a function that loads there, one that stores there) for the vectors of neighbouring pixels.
template <typename Each>
INLINE void vectors_of(const Tail& tail, const Each& each) {
  for (int64_t p = 0; p < tail.whole; p += LANES)
    each(p, [](const float* from) { return load(from); }, [](float* to, vec x) { store(to, x); });
  if (tail.rest)
    each(tail.whole, [&](const float* from) { return tail.load(from); }, [&](float* to, vec x) { tail.store(to, x); });
}

INLINE ints load_ints(const int32_t* p) { return *reinterpret_cast<const loose_ints*>(p); }

// Losses and labels of n neighbouring pixels. losses, labels, top: of whole vectors.
void forward_block(const float* x, int64_t stride, int64_t n, int64_t clusters, float* top, float* losses, int32_t* labels) {
  const Tail tail(n);
  for (int64_t p = 0; p < padded(n); ++p) top[p] = -INFINITY, losses[p] = 0.0f, labels[p] = 0;

  for (int64_t k = 0; k < clusters; ++k) {
    vectors_of(tail, [&](int64_t p, const auto& load_x, const auto&) {
      const vec score = load_x(x + k * stride + p), before = load(top + p);
      const ints larger = score > before, number = ints{} + static_cast<int32_t>(k);
      store(top + p, larger ? score : before);
      *reinterpret_cast<loose_ints*>(labels + p) = larger ? number : load_ints(labels + p);
    });
  }
  for (int64_t k = 0; k < clusters; ++k) {
    vectors_of(tail, [&](int64_t p, const auto& load_x, const auto&) {
      const vec power = exp_below(load_x(x + k * stride + p) - load(top + p));
      store(losses + p, load(losses + p) + (load_ints(labels + p) == static_cast<int32_t>(k) ? zeros() : power));
    });
  }
  for (int64_t p = 0; p < n; p += LANES) {
    const vec most = load(top + p);
    store(losses + p, log1p(load(losses + p)) + (most - most));
  }
  for (int64_t p = 0; p < n; ++p)
    if (std::isnan(losses[p])) labels[p] = label_of_nan(x + p, clusters, stride, labels[p]);
}

// Gradients of the logits of n neighbouring pixels. others, top: of whole vectors.
void backward_block(const float* x, int64_t stride, int64_t n, int64_t clusters, const int32_t* labels,
                    const float* slopes, float* top, float* others, float* out, int64_t out_stride) {
  const Tail tail(n);
  for (int64_t p = 0; p < n; ++p) {
    top[p] = x[labels[p] * stride + p];
    others[p] = top[p] - top[p];
  }

  for (int64_t k = 0; k < clusters; ++k) {
    vectors_of(tail, [&](int64_t p, const auto& load_x, const auto& store_x) {
      const vec all_powers = exp_below(load_x(x + k * stride + p) - load(top + p));
      const vec power = load_ints(labels + p) == static_cast<int32_t>(k) ? zeros() : all_powers;
      store_x(out + k * out_stride + p, power);
      store(others + p, load(others + p) + power);
    });
  }

  float* factors = top;
  for (int64_t p = 0; p < n; ++p) factors[p] = slopes[p] / (1.0f + others[p]);
  for (int64_t k = 0; k < clusters; ++k) {
    vectors_of(tail, [&](int64_t p, const auto& load_x, const auto& store_x) {
      store_x(out + k * out_stride + p, load_x(out + k * out_stride + p) * load(factors + p));
    });
  }
  for (int64_t p = 0; p < n; ++p) out[labels[p] * out_stride + p] = -others[p] * factors[p];
}

}  // namespace

void clustering_loss_forward(int64_t threads, const float* logits, int64_t batch, int64_t height, int64_t width,
                             int64_t clusters, int64_t image_stride, int64_t row_stride, int64_t column_stride,
                             int64_t cluster_stride, int64_t mean, float* losses, float* loss, void* labels,
                             int64_t label_bytes, void* label_count) {
  const Map<const float> map{logits, image_stride, row_stride, column_stride, cluster_stride};
  const Parts parts(threads, batch, height * width, SHORT);
  const bool rows = cluster_stride == 1;
  const int64_t block = rows ? LANES : block_of(clusters);
  Found found(parts, clusters, losses, labels, label_bytes);

  parallel(threads, parts.count(), [&](int64_t part) {
    const int64_t image = parts.image(part);
    const Tail tail(clusters);
    const Scratch top(block), some_losses(block);
    std::vector<int32_t> some_labels(block + LANES);

    parts.of(part, width, block, [&](int64_t row, int64_t column, int64_t n) {
      const float* x = map.at(image, row, column);
      if (rows) {
        vec found_losses;
        cluster_rows(x, column_stride, n, clusters, tail, &found_losses, some_labels.data());
        store(some_losses, found_losses);
      } else {
        forward_block(x, cluster_stride, n, clusters, top, some_losses, some_labels.data());
      }

      const int64_t at = (image * height + row) * width + column;
      found.put(part, at, some_losses, some_labels.data(), n);
    });
  });
  found.finish(mean, loss, label_count);
}

void clustering_loss_backward(int64_t threads, const float* logits, int64_t batch, int64_t height, int64_t width,
                              int64_t clusters, int64_t image_stride, int64_t row_stride, int64_t column_stride,
                              int64_t cluster_stride, const void* labels, int64_t label_bytes, const float* grad,
                              int64_t per_pixel, float divisor, float* d_logits, int64_t d_image_stride,
                              int64_t d_row_stride, int64_t d_column_stride, int64_t d_cluster_stride) {
  const Map<const float> map{logits, image_stride, row_stride, column_stride, cluster_stride};
  const Map<float> d_map{d_logits, d_image_stride, d_row_stride, d_column_stride, d_cluster_stride};
  const Given given{labels, label_bytes, grad, per_pixel != 0, divisor};
  const Parts parts(threads, batch, height * width, SHORT);
  const bool rows = cluster_stride == 1;
  const int64_t block = rows ? LANES : block_of(clusters);

  parallel(threads, parts.count(), [&](int64_t part) {
    const int64_t image = parts.image(part);
    const Tail tail(clusters);
    const Scratch top(block), others(block), slopes(block);
    std::vector<int32_t> some_labels(block + LANES);

    parts.of(part, width, block, [&](int64_t row, int64_t column, int64_t n) {
      const int64_t at = (image * height + row) * width + column;
      given.read(at, n, some_labels.data(), slopes);

      const float* x = map.at(image, row, column);
      float* out = d_map.at(image, row, column);
      if (rows) {
        cluster_gradient_rows(x, column_stride, n, tail, some_labels.data(), slopes, out, d_column_stride);
      } else {
        backward_block(x, cluster_stride, n, clusters, some_labels.data(), slopes, top, others, out, d_cluster_stride);
      }
    });
  });
}

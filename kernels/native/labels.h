// Losses, labels and gradients of pixels in memory, and what all pixels make together: the sum of losses, the labels that
// occur.
#pragma once

#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "parts.h"

// Labels of 1, 2 or 4 bytes each.
static inline void store_labels(const int32_t* labels, int64_t n, void* to, int64_t at, int64_t bytes) {
  if (bytes == 4) std::memcpy(static_cast<int32_t*>(to) + at, labels, n * sizeof(int32_t));
  for (int64_t i = 0; bytes < 4 && i < n; ++i) {
    if (bytes == 1) static_cast<uint8_t*>(to)[at + i] = static_cast<uint8_t>(labels[i]);
    if (bytes == 2) static_cast<int16_t*>(to)[at + i] = static_cast<int16_t>(labels[i]);
  }
}

static inline void load_labels(const void* from, int64_t at, int64_t bytes, int64_t n, int32_t* labels) {
  if (bytes == 4) std::memcpy(labels, static_cast<const int32_t*>(from) + at, n * sizeof(int32_t));
  for (int64_t i = 0; bytes < 4 && i < n; ++i)
    labels[i] = bytes == 1 ? static_cast<const uint8_t*>(from)[at + i] : static_cast<const int16_t*>(from)[at + i];
}

// What a backward is given of each pixel: its label, and the gradient of its loss, its own or one number for all.
struct Given {
  const void* labels;
  int64_t label_bytes;
  const float* grad;
  bool per_pixel;
  float divisor;

  void read(int64_t at, int64_t n, int32_t* some_labels, float* slopes) const {
    load_labels(labels, at, label_bytes, n, some_labels);
    for (int64_t p = 0; p < n; ++p) slopes[p] = grad[per_pixel ? at + p : 0] / divisor;
  }
};

// What a forward finds: each pixel's label, and loss where it is wanted; of the parts the sum of their losses, and which
// labels occur.
struct Found {
  const Parts& parts;
  int64_t clusters;
  float* losses;  // of every pixel, or null
  void* labels;
  int64_t label_bytes;
  std::vector<double> sums;
  std::vector<uint8_t> present;  // [parts, clusters]

  Found(const Parts& parts, int64_t clusters, float* losses, void* labels, int64_t label_bytes)
      : parts(parts), clusters(clusters), losses(losses), labels(labels), label_bytes(label_bytes), sums(parts.count()),
        present(parts.count() * clusters) {}

  // Of n pixels from `at` on, of all images.
  void put(int64_t part, int64_t at, const float* some_losses, const int32_t* some_labels, int64_t n) {
    store_labels(some_labels, n, labels, at, label_bytes);
    if (losses) std::memcpy(losses + at, some_losses, n * sizeof(float));
    for (int64_t i = 0; i < n; ++i) {
      sums[part] += some_losses[i];
      present[part * clusters + some_labels[i]] = 1;
    }
  }

  // Of all parts in their order. The mean of nothing is NaN.
  void finish(bool mean, float* loss, void* label_count) const {
    if (loss) {
      const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
      *loss = static_cast<float>(mean ? total / static_cast<double>(parts.batch * parts.pixels) : total);
    }
    for (int64_t image = 0; image < parts.batch; ++image) {
      int32_t count = 0;
      for (int64_t k = 0; k < clusters; ++k) {
        uint8_t occurs = 0;
        for (int64_t piece = 0; piece < parts.pieces; ++piece)
          occurs |= present[(image * parts.pieces + piece) * clusters + k];
        count += occurs;
      }
      static_cast<int32_t*>(label_count)[image] = count;
    }
  }
};

// Labels in memory, which labels occur, and the sum of losses.
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

// What the parts of a clustering loss find: the sum of their losses, and which labels occur.
struct Found {
  const Parts& parts;
  int64_t clusters;
  std::vector<double> losses;
  std::vector<uint8_t> present;  // [parts, clusters]

  Found(const Parts& parts, int64_t clusters)
      : parts(parts), clusters(clusters), losses(parts.count()), present(parts.count() * clusters) {}

  void add(int64_t part, const float* loss, const int32_t* labels, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      losses[part] += loss[i];
      present[part * clusters + labels[i]] = 1;
    }
  }

  // Of all parts in their order. The mean of nothing is NaN.
  void finish(bool mean, float* loss, void* label_count) const {
    if (loss) {
      const double total = std::accumulate(losses.begin(), losses.end(), 0.0);
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

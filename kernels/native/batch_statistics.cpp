// Mean and biased variance of every channel of a map, from one read of it.
#include "channel_moments.h"
#include "native.h"
#include "parallel.h"

namespace {

constexpr int64_t BLOCK = 64;  // rows

}  // namespace

void batch_statistics(int64_t threads, const float* x, int64_t rows, int64_t channels, float* mean, float* var) {
  std::vector<std::unique_ptr<ChannelMoments>> found(threads);
  parallel(threads, [&](int64_t part) {
    found[part] = std::make_unique<ChannelMoments>(channels);
    const int64_t last = rows * (part + 1) / threads;
    for (int64_t row = rows * part / threads; row < last; row += BLOCK)
      found[part]->add(x + row * channels, channels, std::min(BLOCK, last - row));
  });

  ChannelMoments all(channels);
  for (const auto& part : found) all.add(*part);
  all.write(mean, var);
}

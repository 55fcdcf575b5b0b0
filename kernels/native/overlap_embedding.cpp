// A 3x3 convolution of an image, channels last, and the mean and variance of what it makes, in one pass; its backward.
//
//   y = p W + b    dW = p^T dy    db = sum of dy    with p (pixels, 9 channels in), the 3x3 window of each pixel
//
// Windows are copied into a block of scratch memory, zeros where they reach over the edge of the image: a few numbers a
// pixel beside the width of y. Their last column is 1 in the backward, whose product then gives the bias's gradient too.
#include "channel_moments.h"
#include "native.h"
#include "parallel.h"
#include "parts.h"
#include "rows.h"

namespace {

constexpr int64_t BLOCK = 64;         // pixels of y
constexpr int64_t SHORT = 2 * BLOCK;  // fewest pixels that are worth a part
constexpr int64_t SIDE = 3;           // of a window, whose middle is the pixel

struct Windows {
  const float* image;  // (batch, height, width, channels)
  int64_t height, width, channels, stride;

  int64_t numbers() const { return SIDE * SIDE * channels; }
  int64_t columns() const { return (width + stride - 1) / stride; }
  int64_t pixels() const { return (height + stride - 1) / stride * columns(); }
  int64_t number(int64_t batch, int64_t row, int64_t column) const { return batch * pixels() + row * columns() + column; }

  // Windows of `n` pixels of a row of y, from a column on, `to_row` apart.
  void copy(int64_t batch, int64_t row, int64_t column, int64_t n, float* to, int64_t to_row) const {
    const int64_t line = SIDE * channels;
    for (int64_t i = 0; i < SIDE; ++i, to += line) {
      const int64_t y = row * stride + i - 1;
      const bool inside = y >= 0 && y < height;
      const float* from = image + (batch * height + (inside ? y : 0)) * width * channels;
      for (int64_t j = 0; j < n; ++j) {
        const int64_t x = (column + j) * stride - 1;
        const int64_t first = std::max<int64_t>(x, 0), last = inside ? std::min(x + SIDE, width) : first;
        float* p = to + j * to_row;
        if (last - first < SIDE) clear(p, line);
        for (int64_t k = first * channels; k < last * channels; ++k) p[k - x * channels] = from[k];
      }
    }
  }
};

}  // namespace

void overlap_embedding_forward(int64_t threads, const float* image, int64_t batch, int64_t height, int64_t width,
                               int64_t in_channels, int64_t stride, int64_t channels, const float* weight,
                               const float* bias, float* y, float* mean, float* var) {
  const Windows windows{image, height, width, in_channels, stride};
  const int64_t numbers = windows.numbers(), row = padded(channels);
  const Packed right(weight, numbers, channels, channels, 1);
  const Row add(bias, channels, 0.0f);
  const Parts parts(threads, batch, windows.pixels(), SHORT);
  std::vector<std::unique_ptr<ChannelMoments>> found(parts.count());

  parallel(threads, parts.count(), [&](int64_t part) {
    found[part] = std::make_unique<ChannelMoments>(channels);
    const Scratch block(BLOCK * numbers), made(BLOCK * row);
    parts.of(part, windows.columns(), BLOCK, [&](int64_t of, int64_t column, int64_t n) {
      windows.copy(parts.image(part), of, column, n, block, numbers);
      product_plus(n, channels, numbers, {block, numbers, 1}, right, add, made, row);  // [n, C]
      found[part]->add(made, row, n);

      const int64_t at = windows.number(parts.image(part), of, column);
      copy_rows(made, row, n, channels, y + at * channels, channels);
    });
  });

  ChannelMoments all(channels);
  for (const auto& part : found) all.add(*part);
  all.write(mean, var);
}

void overlap_embedding_backward(int64_t threads, const float* image, int64_t batch, int64_t height, int64_t width,
                                int64_t in_channels, int64_t stride, int64_t channels, const float* grad_y,
                                float* d_weight, float* d_bias) {
  const Windows windows{image, height, width, in_channels, stride};
  const int64_t numbers = windows.numbers() + 1, row = padded(channels), size = numbers * row;
  const Parts parts(threads, batch, windows.pixels(), SHORT);
  const Scratch partial(std::max<int64_t>(parts.count(), 1) * size);  // of a part: dW (9 in, C), and db
  const Tail tail(channels);

  parallel(threads, parts.count(), [&](int64_t part) {
    const Scratch block(BLOCK * numbers), slopes(BLOCK * row);
    for (int64_t i = 0; i < BLOCK; ++i) block[(i + 1) * numbers - 1] = 1.0f;
    parts.of(part, windows.columns(), BLOCK, [&](int64_t of, int64_t column, int64_t n) {
      windows.copy(parts.image(part), of, column, n, block, numbers);

      const int64_t at = windows.number(parts.image(part), of, column);
      for (int64_t i = 0; i < n; ++i) read_row(grad_y + (at + i) * channels, tail, 1.0f, slopes + i * row);
      add_product(numbers, channels, n, {block, 1, numbers}, {slopes, row}, partial + part * size, row);  // [9 in + 1, C]
    });
  });

  for (int64_t part = 1; part < parts.count(); ++part) add_to(partial, partial + part * size, size);
  copy_rows(partial, row, numbers - 1, channels, d_weight, channels);
  copy_row(partial + (numbers - 1) * row, channels, d_bias);
}

// Pixels of images dealt to parts, for results and sums that do not depend on which thread takes which part.
#pragma once

#include <algorithm>
#include <cstdint>

// The same number of parts for each image.
struct Parts {
  int64_t batch, pixels, pieces;

  // shortest: pixels that are worth a part. a_thread: parts of each where there are several, so that one that is late
  // takes fewer.
  Parts(int64_t threads, int64_t batch, int64_t pixels, int64_t shortest, int64_t a_thread = 4)
      : batch(batch), pixels(pixels),
        pieces(std::max<int64_t>(1, std::min(share(threads == 1 ? 1 : a_thread * threads, batch), pixels / shortest))) {}

  int64_t count() const { return batch * pieces; }
  int64_t image(int64_t part) const { return part / pieces; }
  int64_t first(int64_t part) const { return pixels * (part % pieces) / pieces; }
  int64_t last(int64_t part) const { return pixels * (part % pieces + 1) / pieces; }

  // walk(row, first column, number) for every run of a part's pixels within a row of `width`, of `most` pixels.
  template <typename Walk>
  void of(int64_t part, int64_t width, int64_t most, const Walk& walk) const {
    int64_t at = first(part);
    while (at < last(part)) {
      const int64_t column = at % width, some = std::min({most, width - column, last(part) - at});
      walk(at / width, column, some);
      at += some;
    }
  }

  // walk(first pixel of all images, number) for every block of a part's pixels, of `most`.
  template <typename Walk>
  void of(int64_t part, int64_t most, const Walk& walk) const {
    const int64_t begin = image(part) * pixels;
    for (int64_t at = first(part); at < last(part); at += most) walk(begin + at, std::min(most, last(part) - at));
  }

 private:
  static int64_t share(int64_t parts, int64_t images) { return (parts + images - 1) / std::max<int64_t>(images, 1); }
};

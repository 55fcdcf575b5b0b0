// Patches of a batch-normed score map, cut twice one diagonal step apart, times one weight; forward and backward.
//
//   y = (l - mean) rstd gamma + beta = z gamma + beta        embedded (patch, c) = sum over j of y_j W_cj + b_c
//
// Patches of P x P pixels from row and column 1 are the queries, from 0 the keys; a patch's numbers j run over (row,
// column, cluster), which are also the columns of W (C, P P K). With g the gradient of what was embedded:
//
//   G = g^T z    db = sum of g    dW = G gamma + db beta    dgamma = sum of W G    dbeta = sum of W db
//   dy = g W at the pixel's place in its patch of the queries, and in that of the keys
//   dl = gamma rstd (dy - dbeta / n - z dgamma / n), with the last two where mean and rstd are the map's own
//
// The weight is the larger operand. It is walked through in chunks of a few pixels of a patch's row, for all patches, or
// some hundred of them, at a time; no patch is kept. Forward and backward read it once each. What a chunk gives to dy goes
// to two maps, one of the queries and one of the keys, each number of which is written once; the sums of both maps become
// the gradients of the logits. Sums of parts are added in their order.
#include "dots.h"
#include "native.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"

namespace {

constexpr int64_t CACHE = 128 * 1024;  // numbers that a part keeps in the second-level cache
constexpr int64_t SOME = 128;          // most patches at a time
constexpr int64_t FEW = 16;            // patches for which columns of the weight are not worth a copy
constexpr int64_t DEPTH = 512;         // most numbers of a patch in one sum, beside which few terms round like few
constexpr int64_t EACH = 4;            // parts a thread

struct Patch {
  bool of_queries;
  int64_t image, y, x;  // y, x: among the patches of an image
};

struct Call {
  const float* logits;
  int64_t batch, height, width, clusters;
  int64_t image, row, column;  // strides
  int64_t channels, patch;
  int64_t down, across, patches, all;  // patches of an image along its axes and together; of both windows of all images
  int64_t length;                      // numbers of a patch

  Call(const float* logits, int64_t batch, int64_t height, int64_t width, int64_t clusters, int64_t image, int64_t row,
       int64_t column, int64_t channels, int64_t patch)
      : logits(logits), batch(batch), height(height), width(width), clusters(clusters), image(image), row(row),
        column(column), channels(channels), patch(patch), down((height - 1) / patch), across((width - 1) / patch),
        patches(down * across), all(2 * batch * patches), length(patch * patch * clusters) {}

  // A patch by its number among queries and keys of all images.
  Patch at(int64_t number) const {
    const int64_t of_window = number % (batch * patches), of_image = number % patches;
    return {number == of_window, of_window / patches, of_image / across, of_image % across};
  }
  const float* corner(int64_t number) const {  // its first pixel
    const Patch at = this->at(number);
    return logits + at.image * image + (at.y * patch + at.of_queries) * row + (at.x * patch + at.of_queries) * column;
  }
};

// Runs of `width` pixels of a patch's row, one behind the other: the last of a row may be shorter.
struct Chunks {
  int64_t clusters, patch, width, across, count;

  // numbers: that the cache may hold beside each other for every number of a chunk
  Chunks(const Call& call, int64_t numbers)
      : clusters(call.clusters), patch(call.patch),
        width(std::max<int64_t>(1, std::min(patch, CACHE / (numbers * clusters)))),
        across((patch + width - 1) / width), count(patch * across) {}
  int64_t y(int64_t chunk) const { return chunk / across; }
  int64_t first(int64_t chunk) const { return chunk % across * width; }
  int64_t pixels(int64_t chunk) const { return std::min(width, patch - first(chunk)); }
  int64_t at(int64_t chunk) const { return (y(chunk) * patch + first(chunk)) * clusters; }  // among a patch's numbers
  int64_t row() const { return padded(width * clusters) + LANES; }
};

// y = (l - mean) scale + shift
struct Norm {
  Row mean, scale, shift;
  Norm(const Call& call, const float* mean, const float* rstd, const float* gamma, const float* beta)
      : mean(mean, call.clusters, 0.0f), scale(rstd, call.clusters, 1.0f), shift(beta, call.clusters, 0.0f) {
    for (int64_t k = 0; gamma && k < call.clusters; ++k) scale[k] *= gamma[k];
  }
  INLINE vec operator()(vec l, int64_t k) const { return (l - load(mean + k)) * load(scale + k) + load(shift + k); }
};

// Patches [first, first + n) at a chunk, normed, to rows.
void gather(const Call& call, const Norm& norm, const Chunks& chunks, int64_t chunk, int64_t first, int64_t n, float* to) {
  const Tail tail(call.clusters);
  const int64_t row = chunks.row(), offset = chunks.y(chunk) * call.row + chunks.first(chunk) * call.column;
  for (int64_t i = 0; i < n; ++i, to += row) {
    const float* from = call.corner(first + i) + offset;
    for (int64_t x = 0; x < chunks.pixels(chunk); ++x, from += call.column) {
      float* pixel = to + x * call.clusters;  // the lanes behind it are the next pixel's, which comes later
      for (int64_t k = 0; k < tail.whole; k += LANES) store(pixel + k, norm(load(from + k), k));
      if (tail.rest) store(pixel + tail.whole, norm(tail.load(from + tail.whole), tail.whole));
    }
  }
}

// The same transposed: a row for each number of the chunk, of whole vectors of patches; the last lanes repeat the last.
void gather_transposed(const Call& call, const Norm& norm, const Chunks& chunks, int64_t chunk, int64_t first, int64_t n,
                       float* to, int64_t row) {
  const Tail tail(call.clusters);
  const int64_t offset = chunks.y(chunk) * call.row + chunks.first(chunk) * call.column;
  for (int64_t i = 0; i < n; i += LANES) {
    const float* corners[LANES];
    for (int64_t lane = 0; lane < LANES; ++lane) corners[lane] = call.corner(first + std::min(i + lane, n - 1)) + offset;
    for (int64_t x = 0; x < chunks.pixels(chunk); ++x) {
      const auto move = [&](int64_t k, int rows, const auto& load_from) {
        vec block[LANES];
        UNROLL for (int lane = 0; lane < LANES; ++lane)
          block[lane] = norm(load_from(corners[lane] + x * call.column + k), k);
        transpose(block);
        for (int j = 0; j < rows; ++j) store(to + (x * call.clusters + k + j) * row + i, block[j]);
      };
      for (int64_t k = 0; k < tail.whole; k += LANES) move(k, LANES, [](const float* p) { return load(p); });
      if (tail.rest) move(tail.whole, tail.rest, [&](const float* p) { return tail.load(p); });
    }
  }
}

// embedded of few patches: the weight's rows are read as they lie.
void embed_few(const Call& call, const Norm& norm, int64_t threads, const float* weight, const float* bias,
               float* embedded) {
  const int64_t n = call.all, channels = call.channels, size = channels * n * LANES;
  const Chunks chunks(call, CACHE / 1024);
  const int64_t parts = std::min(chunks.count, threads == 1 ? 1 : EACH * threads);
  const Scratch partial(parts * size);  // of a part, (C, n) vectors

  parallel(threads, parts, [&](int64_t part) {
    const Scratch y(n * chunks.row());
    for (int64_t chunk = chunks.count * part / parts; chunk < chunks.count * (part + 1) / parts; ++chunk) {
      gather(call, norm, chunks, chunk, 0, n, y);
      add_dots(channels, n, chunks.pixels(chunk) * call.clusters, weight + chunks.at(chunk), call.length, y,
               chunks.row(), partial + part * size, n * LANES);
    }
  });

  for (int64_t part = 1; part < parts; ++part) add_to(partial, partial + part * size, size);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < channels; ++c)
      embedded[i * channels + c] = sum(load(partial + (c * n + i) * LANES)) + (bias ? bias[c] : 0.0f);
}

}  // namespace

void patch_embedding_forward(int64_t threads, const float* logits, int64_t batch, int64_t height, int64_t width,
                             int64_t clusters, int64_t image_stride, int64_t row_stride, int64_t column_stride,
                             const float* mean, const float* rstd, const float* gamma, const float* beta,
                             const float* weight, const float* bias, int64_t channels, int64_t patch, float* embedded) {
  const Call call(logits, batch, height, width, clusters, image_stride, row_stride, column_stride, channels, patch);
  const Norm norm(call, mean, rstd, gamma, beta);
  if (call.all <= FEW) return embed_few(call, norm, threads, weight, bias, embedded);
  const int64_t some = std::min(SOME, call.all), row = padded(some), blocks = (call.all + SOME - 1) / SOME;
  const Chunks chunks(call, row + LANES);
  const int64_t steps = blocks * chunks.count, parts = std::min(steps, threads == 1 ? 1 : EACH * threads);

  // A part takes steps that follow one another, all chunks of a block of patches and then the next block. Two parts
  // share one block at most, so `block + part` numbers their sums (C, row).
  const int64_t size = channels * row;
  const Scratch partial((blocks + parts) * size);
  const auto first_of = [&](int64_t part) { return steps * part / parts; };
  parallel(threads, parts, [&](int64_t part) {
    const Scratch y(chunks.width * clusters * row);
    for (int64_t step = first_of(part); step < first_of(part + 1); ++step) {
      const int64_t block = step / chunks.count, chunk = step % chunks.count;
      const int64_t first = block * SOME, n = std::min(SOME, call.all - first);
      gather_transposed(call, norm, chunks, chunk, first, n, y, row);

      const int64_t numbers = chunks.pixels(chunk) * clusters;
      for (int64_t j = 0; j < numbers; j += DEPTH) {
        const float* w = weight + chunks.at(chunk) + j;
        add_product(channels, n, std::min(DEPTH, numbers - j), {w, call.length, 1}, {y + j * row, row},
                    partial + (block + part) * size, row);
      }
    }
  });

  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t block = first_of(part) / chunks.count; block * chunks.count < first_of(part + 1); ++block) {
      const float* sums = partial + (block + part) * size;
      const int64_t first = block * SOME, n = std::min(SOME, call.all - first);
      const bool begins = first_of(part) <= block * chunks.count;
      for (int64_t i = 0; i < n; ++i) {
        float* to = embedded + (first + i) * channels;
        for (int64_t c = 0; c < channels; ++c)
          to[c] = sums[c * row + i] + (begins ? (bias ? bias[c] : 0.0f) : to[c]);
      }
    }
  }
}

namespace {

// dy of the queries, as a map of its own: its first pixel is that of row and column 1. That of the keys needs none, it goes
// to where the gradients of the logits will be.
struct QueryMap {
  int64_t height, width;
  Unset slopes;  // [B, height, width, K]
  explicit QueryMap(const Call& call)
      : height(call.down * call.patch), width(call.across * call.patch),
        slopes(call.batch * height * width * call.clusters) {}
};

struct Gradients {
  float* d_logits;
  int64_t image, row, column;  // strides
  float *d_weight, *d_bias;
};

// For every number of the weight in some chunks, read once: its gradient, dy of the patches at it, and its share in the
// gradients of gamma and beta.
void weight_gradients(const Call& call, const Norm& norm, const Chunks& chunks, int64_t first_chunk, int64_t last_chunk,
                      const float* gamma, const float* beta, const float* weight, const float* grad, const QueryMap& queries,
                      const Gradients& to, double* d_gamma, double* d_beta) {
  const int64_t row = chunks.row(), clusters = call.clusters, channels = call.channels;
  const Scratch w(channels * row), g(channels * row);
  const Scratch some(std::min(SOME, call.all) * row);  // dy of some patches at the chunk, and then their z
  const Scratch gammas(row), betas(row), gamma_sums(row), beta_sums(row);  // of the numbers of a chunk
  for (int64_t j = 0; j < chunks.width * clusters; ++j) gammas[j] = gamma[j % clusters], betas[j] = beta[j % clusters];

  for (int64_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    const int64_t y = chunks.y(chunk), left = chunks.first(chunk), pixels = chunks.pixels(chunk);
    const int64_t numbers = pixels * clusters;
    for (int64_t c = 0; c < channels; ++c) {
      const float* from = weight + c * call.length + chunks.at(chunk);
      for (int64_t j = 0; j < numbers; j += LANES) fetch(from + call.length + j);
      copy_row(from, numbers, w + c * row);
    }

    if (!call.all) clear(g, channels * row);
    for (int64_t first = 0; first < call.all; first += SOME) {
      const int64_t n = std::min(SOME, call.all - first);
      product(n, numbers, channels, {grad + first * channels, channels, 1}, {w, row}, some, row);  // dy [n, numbers]
      for (int64_t i = 0; i < n; ++i) {
        const Patch at = call.at(first + i);
        const int64_t at_y = at.y * call.patch + y, at_x = at.x * call.patch + left;
        float* map = at.of_queries ? queries.slopes + ((at.image * queries.height + at_y) * queries.width + at_x) * clusters
                                   : to.d_logits + at.image * to.image + at_y * to.row + at_x * to.column;
        stream_rows(some + i * row, pixels, clusters, map, at.of_queries ? clusters : to.column);
      }

      const Left g_transposed = {grad + first * channels, 1, channels};
      gather(call, norm, chunks, chunk, first, n, some);
      if (!first) product(channels, numbers, n, g_transposed, {some, row}, g, row);  // [C, numbers]
      if (first) add_product(channels, numbers, n, g_transposed, {some, row}, g, row);
    }

    clear(gamma_sums, row);
    clear(beta_sums, row);
    for (int64_t c = 0; c < channels; ++c) {
      const float *w_row = w + c * row, *g_row = g + c * row;
      const auto gradient = [&](int64_t j, const auto& read) {
        const vec value = read(w_row + j), slope = load(g_row + j);
        store(gamma_sums + j, load(gamma_sums + j) + value * slope);
        store(beta_sums + j, load(beta_sums + j) + value * to.d_bias[c]);
        return slope * load(gammas + j) + load(betas + j) * to.d_bias[c];
      };
      stream_row(numbers, gradient, to.d_weight + c * call.length + chunks.at(chunk));
    }
    for (int64_t x = 0; x < pixels; ++x) {
      for (int64_t k = 0; k < clusters; ++k) {
        d_gamma[k] += gamma_sums[x * clusters + k];
        d_beta[k] += beta_sums[x * clusters + k];
      }
    }
  }
  end_streams();
}

// What becomes of dy: dl = dy scale - shift - (l - mean) slope.
struct Through {
  Row mean, scale, shift, slope;
  bool batch_stats;

  Through(const Call& call, const float* mean, const float* rstd, const float* gamma, const float* d_gamma,
          const float* d_beta, bool batch_stats)
      : mean(mean, call.clusters, 0.0f), scale(rstd, call.clusters, 0.0f), shift(nullptr, call.clusters, 0.0f),
        slope(nullptr, call.clusters, 0.0f), batch_stats(batch_stats) {
    const float share = 1.0f / static_cast<float>(std::max<int64_t>(1, call.batch * call.height * call.width));
    for (int64_t k = 0; k < call.clusters; ++k) {
      scale[k] *= gamma[k];
      if (!batch_stats) continue;
      shift[k] = d_beta[k] * share * scale[k];
      slope[k] = d_gamma[k] * share * rstd[k] * scale[k];
    }
  }
};

// Gradients of the logits of one pixel; its dy is the sum of two rows, each of which may be null.
INLINE void pixel_gradient(const Through& through, const Tail& tail, const float* l, const float* first,
                           const float* second, float* d_l) {
  const auto gradient = [&](int64_t k, const auto& load_from) {
    vec dy = first ? load_from(first + k) : zeros();
    if (second) dy += load_from(second + k);
    const vec scaled = dy * load(through.scale + k);
    if (!through.batch_stats) return scaled;
    return scaled - load(through.shift + k) - (load_from(l + k) - load(through.mean + k)) * load(through.slope + k);
  };
  for (int64_t k = 0; k < tail.whole; k += LANES) store(d_l + k, gradient(k, [](const float* p) { return load(p); }));
  if (tail.rest) tail.store(d_l + tail.whole, gradient(tail.whole, [&](const float* p) { return tail.load(p); }));
}

// Gradients of the logits of rows [first, last) of all images, in place of dy of the keys.
void logits_gradients(const Call& call, const Through& through, int64_t first, int64_t last, const QueryMap& queries,
                      const Gradients& to) {
  const Tail tail(call.clusters);
  for (int64_t row = first; row < last; ++row) {
    const int64_t image = row / call.height, y = row % call.height;
    const float* l = call.logits + image * call.image + y * call.row;
    float* d_l = to.d_logits + image * to.image + y * to.row;
    const float* query = queries.slopes + (image * queries.height + y - 1) * queries.width * call.clusters;
    for (int64_t x = 0; x < call.width; ++x, l += call.column, d_l += to.column) {
      const bool is_key = y < queries.height && x < queries.width;
      const bool is_query = 1 <= y && y <= queries.height && 1 <= x && x <= queries.width;
      pixel_gradient(through, tail, l, is_key ? d_l : nullptr, is_query ? query + (x - 1) * call.clusters : nullptr, d_l);
    }
  }
}

}  // namespace

void patch_embedding_backward(int64_t threads, const float* logits, int64_t batch, int64_t height, int64_t width,
                              int64_t clusters, int64_t image_stride, int64_t row_stride, int64_t column_stride,
                              const float* mean, const float* rstd, const float* gamma, const float* beta,
                              const float* weight, int64_t channels, int64_t patch, int64_t batch_stats,
                              const float* grad, float* d_logits, int64_t d_image_stride, int64_t d_row_stride,
                              int64_t d_column_stride, float* d_weight, float* d_bias, float* d_gamma, float* d_beta) {
  const Call call(logits, batch, height, width, clusters, image_stride, row_stride, column_stride, channels, patch);
  const auto parts_of = [&](int64_t count) { return std::min(count, threads == 1 ? 1 : EACH * threads); };

  const Gradients to = {d_logits, d_image_stride, d_row_stride, d_column_stride, d_weight, d_bias};
  const Scratch sums(channels);
  clear(d_bias, channels);
  for (int64_t first = 0; first < call.all; first += SOME)
    add_rows(grad + first * channels, channels, std::min(SOME, call.all - first), channels, sums, d_bias);

  const Norm norm(call, mean, rstd, nullptr, nullptr);
  const QueryMap queries(call);
  const Chunks chunks(call, 2 * channels + std::min(SOME, call.all));
  const int64_t parts = parts_of(chunks.count);
  std::vector<double> partial(parts * 2 * clusters);  // of a part: dgamma, dbeta
  parallel(threads, parts, [&](int64_t part) {
    double* affine = partial.data() + part * 2 * clusters;
    weight_gradients(call, norm, chunks, chunks.count * part / parts, chunks.count * (part + 1) / parts, gamma, beta,
                     weight, grad, queries, to, affine, affine + clusters);
  });
  for (int64_t k = 0; k < 2 * clusters; ++k) {
    double total = 0.0;
    for (int64_t part = 0; part < parts; ++part) total += partial[part * 2 * clusters + k];
    (k < clusters ? d_gamma[k] : d_beta[k - clusters]) = static_cast<float>(total);
  }

  const Through through(call, mean, rstd, gamma, d_gamma, d_beta, batch_stats);
  const int64_t rows = batch * height, pieces = parts_of(rows);
  parallel(threads, pieces, [&](int64_t part) {
    logits_gradients(call, through, rows * part / pieces, rows * (part + 1) / pieces, queries, to);
  });
}

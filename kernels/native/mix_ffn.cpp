// Mix-FFN, forward and backward. With D hidden channels and w the nine taps of a channel, the skip among them
//
//   u = LayerNorm(t) W1^T + b1         v = sum_k w_k u(pixel + offset_k) + b
//   a = gelu(LayerNorm(v))             y = t + a W2^T + b2
//
//   da = dy W2        dv = through the gelu and the norm        du = sum_k w_k dv(pixel - offset_k)
//   dt = dy + through the norm (du W1)
//   dW2 = dy^T a      dw_k = sum over pixels of dv u(pixel + offset_k)      dW1 = du^T LayerNorm(t)
//
// A part walks down a tile of columns and holds some rows of u (and of dv) in the second-level cache, so nothing of
// width D is ever in memory; columns beside the tile are computed again. Of a narrow map some rows at a time, a band, are
// made by one product, for which the weights are read once. Sums over pixels: of a band of the tile first, then of the
// part, then of all parts in their order.
#include "native.h"
#include "norms.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"

namespace {

constexpr int64_t CACHE = 160 * 1024;  // numbers that a part keeps in the second-level cache
constexpr int64_t WHOLE = 128;         // columns of a map that is one tile, for each of whose bands all weights are read
constexpr int64_t FEWEST = 48;         // columns that must fit the cache for a tile of any other map to be as wide as fit,
constexpr int64_t WIDE = 64;           // and how wide it is where they do not
constexpr int64_t SHORT = 3;           // fewest rows of a tile that are worth a part: two or three are computed again
constexpr int64_t BAND = 136;          // most pixels of a band that has more than a row,
constexpr int64_t ROWS = 4;            // and most rows
constexpr int64_t SUMMED = 64;         // hidden channels whose partial sums a thread adds up
constexpr int64_t BLOCK = 16;          // pixels whose hidden activations pass through the norm while in the first level

struct Call {
  const float* t;
  int64_t batch, height, width, channels, hidden;
  bool norm, inner_norm, residual;
  float eps;
  int64_t c_row, d_row;  // channels and hidden channels in whole vectors
  Row norm_weight, norm_bias, fc1_bias, depthwise_bias, inner_weight, inner_bias, fc2_bias;
  Scratch taps;  // [9, d_row], the skip in the middle
  Packed fc1;    // (C, D)

  Call(int64_t threads, const float* t, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t hidden,
       const float* fc1_weight, const float* fc1_bias, const float* depthwise_weight, const float* depthwise_bias,
       const float* fc2_bias, const float* norm_weight, const float* norm_bias, const float* inner_norm_weight,
       const float* inner_norm_bias, bool norm, bool inner_norm, bool inner_skip, bool residual, float eps)
      : t(t), batch(batch), height(height), width(width), channels(channels), hidden(hidden), norm(norm),
        inner_norm(inner_norm), residual(residual), eps(eps), c_row(padded(channels)), d_row(padded(hidden)),
        norm_weight(norm_weight, channels, 1.0f), norm_bias(norm_bias, channels, 0.0f), fc1_bias(fc1_bias, hidden, 0.0f),
        depthwise_bias(depthwise_bias, hidden, 0.0f), inner_weight(inner_norm_weight, hidden, 1.0f),
        inner_bias(inner_norm_bias, hidden, 0.0f), fc2_bias(fc2_bias, channels, 0.0f), taps(9 * d_row),
        fc1(fc1_weight, channels, hidden, 1, channels, threads) {
    for (int64_t d = 0; d < hidden; ++d)
      for (int tap = 0; tap < 9; ++tap)
        taps[tap * d_row + d] = depthwise_weight[d * 9 + tap] + (inner_skip && tap == 4 ? 1.0f : 0.0f);
  }

  const float* token(int64_t image, int64_t row, int64_t column) const {
    return t + ((image * height + row) * width + column) * channels;
  }
};

// Tiles of columns, and the rows of all tiles of all images dealt to parts. Bands of several rows have one tile alone,
// whose pixels lie one behind the other.
struct Tiles {
  int64_t height, width, count, rows;
  int64_t parts, band;  // rows at a time

  Tiles(const Call& call, int64_t rows_held, int64_t threads)
      : height(call.height), width(call.width),
        count(width <= WHOLE ? width > 0 : (width + widest(call, rows_held) - 1) / widest(call, rows_held)),
        rows(call.batch * count * height),
        parts(std::max<int64_t>(1, std::min(threads, rows / SHORT))),
        band(count == 1 ? std::max<int64_t>(1, std::min(ROWS, BAND / std::max<int64_t>(width, 1))) : 1) {}

  static int64_t widest(const Call& call, int64_t rows_held) {
    const int64_t columns = CACHE / (rows_held * call.d_row);
    return columns < FEWEST ? WIDE : columns;
  }
  int64_t widest() const { return (width + count - 1) / count; }

  // walk(image, first column, last column, first row, last row) for what a part has.
  template <typename Walk>
  void of(int64_t part, const Walk& walk) const {
    int64_t at = rows * part / parts;
    const int64_t end = rows * (part + 1) / parts;
    while (at < end) {
      const int64_t tile = at / height % count, row = at % height;
      const int64_t some = std::min(height - row, end - at);
      walk(at / height / count, tile * width / count, (tile + 1) * width / count, row, row + some);
      at += some;
    }
  }
};

// Rows [first, last), of an image or of a tile.
struct Rows {
  int64_t first, last;
  int64_t count() const { return std::max<int64_t>(last - first, 0); }
  Rows within(int64_t begin, int64_t end) const { return {std::max(first, begin), std::min(last, end)}; }
};

// The last rows of a map of width D, by their number; zeros beyond the image. They are made in bands, the first of which
// begins at `start`: a band's rows lie one behind the other, and two rows before it are kept.
struct Ring {
  int64_t pixels, row, rows, start = 0;
  Unset numbers;
  Ring(int64_t pixels, int64_t d_row, int64_t band)
      : pixels(pixels), row(pixels * d_row), rows(band == 1 ? 3 : 2 * band), numbers(rows * row) {}
  float* at(int64_t y) const { return numbers + (y - start + rows) % rows * row; }
  void clear_beyond(Rows band, Rows rows) const {  // those of the band that are none of the rows
    for (int64_t y = band.first; y < band.last; ++y)
      if (y < rows.first || y >= rows.last) clear(at(y), row);
  }
  void begin(int64_t y) {
    start = y;
    clear(numbers, rows * row);
  }
};

// Sums of products of three taps a row: out[x] = start + sum_k w_k rows_k[x + offset_k], from column 0 of rows, for
// pixels [0, n).
void convolve(const float* above, const float* here, const float* below, int64_t n, const Call& call, bool flipped,
              const float* start, float* out) {
  const int64_t row = call.d_row;
  for (int64_t d = 0; d < row; d += LANES) {
    vec w[9];
    UNROLL for (int tap = 0; tap < 9; ++tap) w[tap] = load(call.taps + (flipped ? 8 - tap : tap) * row + d);
    const vec begin = start ? load(start + d) : zeros();
    const float *p = above + d, *q = here + d, *r = below + d;

    vec p0 = load(p), p1 = load(p + row), q0 = load(q), q1 = load(q + row), r0 = load(r), r1 = load(r + row);
    for (int64_t x = 0; x < n; ++x) {
      const int64_t next = (x + 2) * row;
      const vec p2 = load(p + next), q2 = load(q + next), r2 = load(r + next);

      const vec first = begin + p0 * w[0] + p1 * w[1] + p2 * w[2];  // three chains: no multiply-add waits for all others
      const vec second = q0 * w[3] + q1 * w[4] + q2 * w[5];
      const vec third = r0 * w[6] + r1 * w[7] + r2 * w[8];
      store(out + x * row + d, first + (second + third));

      p0 = p1, p1 = p2, q0 = q1, q1 = q2, r0 = r1, r1 = r2;
    }
  }
}

// d_taps [9, d_row] and d_bias [d_row] of n pixels with gradients dv.
void add_tap_gradients(const float* above, const float* here, const float* below, const float* dv, int64_t n,
                       int64_t row, float* d_taps, float* d_bias) {
  for (int64_t d = 0; d < row; d += LANES) {
    vec w[9] = {}, bias = zeros();
    const float *p = above + d, *q = here + d, *r = below + d;

    vec p0 = load(p), p1 = load(p + row), q0 = load(q), q1 = load(q + row), r0 = load(r), r1 = load(r + row);
    for (int64_t x = 0; x < n; ++x) {
      const int64_t next = (x + 2) * row;
      const vec p2 = load(p + next), q2 = load(q + next), r2 = load(r + next), slope = load(dv + x * row + d);

      bias += slope;
      w[0] += p0 * slope, w[1] += p1 * slope, w[2] += p2 * slope;
      w[3] += q0 * slope, w[4] += q1 * slope, w[5] += q2 * slope;
      w[6] += r0 * slope, w[7] += r1 * slope, w[8] += r2 * slope;

      p0 = p1, p1 = p2, q0 = q1, q1 = q2, r0 = r1, r1 = r2;
    }
    UNROLL for (int tap = 0; tap < 9; ++tap) store(d_taps + tap * row + d, load(d_taps + tap * row + d) + w[tap]);
    store(d_bias + d, load(d_bias + d) + bias);
  }
}

// Of v of n pixels, before anything else: a pixel's sums wait for those of no other.
struct InnerMoments {
  Moments of[BLOCK];
  InnerMoments(const float* v, int64_t n, const Call& call, const Tail& tail) {
    for (int64_t x = 0; x < n; ++x)
      of[x] = call.inner_norm ? moments(v + x * call.d_row, call.hidden, tail, call.eps) : Moments{0.0f, 1.0f};
  }
};

// a = gelu(LayerNorm(v)) of n pixels.
void norm_and_gelu(const float* v, int64_t n, const Call& call, float* a) {
  const int64_t row = call.d_row;
  const float *weight = call.inner_weight, *bias = call.inner_bias;
  const InnerMoments all(v, n, call, Tail(call.hidden));
  for (int64_t x = 0; x < n; ++x, v += row, a += row) {
    const Moments m = all.of[x];
    for (int64_t d = 0; d < row; d += LANES) {
      const vec z = (load(v + d) - m.mean) * m.rstd * load(weight + d) + load(bias + d);
      store(a + d, z * normal_cdf(z));
    }
  }
}

// a again, and dv from da, of n pixels; with sums also those of the norm's parameters.
void norm_and_gelu_backward(const float* v, const float* da, int64_t n, const Call& call, float* a, float* dv,
                            float* d_weight, float* d_bias) {
  const int64_t row = call.d_row;
  const float *weight = call.inner_weight, *bias = call.inner_bias;
  const Tail tail(call.hidden);
  const InnerMoments all(v, n, call, tail);

  // Slopes behind the norm go to the place of dv, and their means over the channels, alone and times the normed v.
  float means[BLOCK], mean_products[BLOCK];
  const float share = 1.0f / static_cast<float>(call.hidden);
  for (int64_t x = 0; x < n; ++x) {
    const Moments m = all.of[x];
    const int64_t at = x * row;
    vec total = zeros(), product = zeros();
    for (int64_t d = 0; d < row; d += LANES) {
      const vec h = (load(v + at + d) - m.mean) * m.rstd, w = load(weight + d);
      const vec z = h * w + load(bias + d);
      const vec cdf = normal_cdf(z);
      store(a + at + d, z * cdf);

      const vec dz = load(da + at + d) * (z * normal_density(z) + cdf);
      if (d_weight) {
        store(d_weight + d, load(d_weight + d) + dz * h);
        store(d_bias + d, load(d_bias + d) + dz);
      }
      const vec slope = dz * w;
      store(dv + at + d, slope);
      total += slope;  // 0 in lanes beyond D, where the weight is 0
      product += slope * h;
    }
    means[x] = call.inner_norm ? sum(total) * share : 0.0f;
    mean_products[x] = call.inner_norm ? sum(product) * share : 0.0f;
  }

  for (int64_t x = 0; x < n; ++x, v += row, dv += row) {
    const Moments m = all.of[x];
    for (int64_t d = 0; d < row; d += LANES) {
      const vec h = (load(v + d) - m.mean) * m.rstd;
      store(dv + d, (load(dv + d) - means[x] - h * mean_products[x]) * m.rstd);
    }
    if (tail.rest) store(dv + tail.whole, tail.only(load(dv + tail.whole)));
  }
}

// LayerNorm(t), then u of a band, zeros beyond the image: of columns [first, last), from pixel `at` of the ring's rows on.
void make_hidden(const Call& call, int64_t image, Rows band, int64_t first, int64_t last, int64_t at, const Ring& u,
                 float* tokens) {
  const Rows rows = band.within(0, call.height);
  u.clear_beyond(band, rows);
  if (!rows.count()) return;

  for (int64_t y = rows.first; y < rows.last; ++y)
    layer_norm(call.token(image, y, first), call.channels, last - first, call.channels, call.norm, call.norm_weight,
               call.norm_bias, call.eps, tokens + (y - rows.first) * u.pixels * call.c_row, call.c_row);
  const int64_t pixels = (rows.count() - 1) * u.pixels + last - first, rest = u.pixels - (last - first);
  product_plus(pixels, call.hidden, call.channels, {tokens, call.c_row, 1}, call.fc1, call.fc1_bias,
               u.at(rows.first) + at * call.d_row, call.d_row);

  for (int64_t y = rows.first; y + 1 < rows.last; ++y)  // between the end of a row and the next
    clear(u.at(y) + (at + last - first) * call.d_row, rest * call.d_row);
}

}  // namespace

void mix_ffn_forward(int64_t threads, const float* t, int64_t batch, int64_t height, int64_t width, int64_t channels,
                     int64_t hidden, const float* fc1_weight, const float* fc1_bias, const float* depthwise_weight,
                     const float* depthwise_bias, const float* fc2_weight, const float* fc2_bias,
                     const float* norm_weight, const float* norm_bias, const float* inner_norm_weight,
                     const float* inner_norm_bias, int64_t norm, int64_t inner_norm, int64_t inner_skip,
                     int64_t residual, float eps, float* y) {
  const Call call(threads, t, batch, height, width, channels, hidden, fc1_weight, fc1_bias, depthwise_weight,
                  depthwise_bias, fc2_bias, norm_weight, norm_bias, inner_norm_weight, inner_norm_bias, norm, inner_norm,
                  inner_skip, residual, eps);
  const Packed fc2(fc2_weight, hidden, channels, 1, hidden, threads);  // (D, C)
  const Tiles tiles(call, 4, threads);
  const int64_t c_row = call.c_row, d_row = call.d_row, widest = tiles.widest(), band = tiles.band;

  parallel(tiles.parts, [&](int64_t part) {
    Ring u(widest + 2, d_row, band);
    const Scratch tokens(std::max<int64_t>(band, 2) * u.pixels * c_row), v(BLOCK * d_row);
    const Scratch a(band * widest * d_row), out(band * widest * c_row);

    tiles.of(part, [&](int64_t image, int64_t left, int64_t right, int64_t first, int64_t last) {
      const int64_t from = std::max<int64_t>(left - 1, 0), to = std::min(right + 1, width), columns = right - left;
      u.begin(first + 1);
      const auto make = [&](Rows rows) {  // column x of the image is column x - left + 1 of the ring
        make_hidden(call, image, rows, from, to, from - left + 1, u, tokens);
      };
      make({first - 1, first + 1});

      for (int64_t begin = first; begin < last; begin += band) {
        const int64_t end = std::min(begin + band, last), pixels = (end - begin) * columns;
        make({begin + 1, end + 1});
        for (int64_t row = begin; row < end; ++row) {
          for (int64_t x = 0; x < columns; x += BLOCK) {
            const int64_t n = std::min(BLOCK, columns - x), at = x * d_row;
            convolve(u.at(row - 1) + at, u.at(row) + at, u.at(row + 1) + at, n, call, false, call.depthwise_bias, v);
            norm_and_gelu(v, n, call, a + ((row - begin) * columns + x) * d_row);
          }
        }
        product_plus(pixels, channels, hidden, {a, d_row, 1}, fc2, call.fc2_bias, out, c_row);

        const float* tokens_in = call.token(image, begin, left);
        float* to_y = y + (tokens_in - t);
        for (int64_t x = 0; x < pixels; ++x)
          for (int64_t c = 0; c < channels; ++c)
            to_y[x * channels + c] = out[x * c_row + c] + (residual ? tokens_in[x * channels + c] : 0.0f);
      }
    });
  });
}

namespace {

// Sums of a part (or of all) over pixels, one behind the other; weights as (9, D) and (C, D).
struct Sums {
  int64_t c_row, d_row, matrix, rows, size;  // rows: of width D
  explicit Sums(const Call& call)
      : c_row(call.c_row), d_row(call.d_row), matrix(call.channels * d_row), rows(2 * call.channels + 13),
        size(rows * d_row + 3 * c_row) {}

  float* fc1(float* p) const { return p; }
  float* fc2(float* p) const { return p + matrix; }
  float* taps(float* p) const { return p + 2 * matrix; }
  float* depthwise_bias(float* p) const { return taps(p) + 9 * d_row; }
  float* fc1_bias(float* p) const { return taps(p) + 10 * d_row; }
  float* inner_weight(float* p) const { return taps(p) + 11 * d_row; }
  float* inner_bias(float* p) const { return taps(p) + 12 * d_row; }
  float* fc2_bias(float* p) const { return taps(p) + 13 * d_row; }
  float* norm_weight(float* p) const { return fc2_bias(p) + c_row; }
  float* norm_bias(float* p) const { return fc2_bias(p) + 2 * c_row; }
};

}  // namespace

void mix_ffn_backward(int64_t threads, const float* t, int64_t batch, int64_t height, int64_t width, int64_t channels,
                      int64_t hidden, const float* fc1_weight, const float* fc1_bias, const float* depthwise_weight,
                      const float* depthwise_bias, const float* fc2_weight, const float* fc2_bias,
                      const float* norm_weight, const float* norm_bias, const float* inner_norm_weight,
                      const float* inner_norm_bias, int64_t norm, int64_t inner_norm, int64_t inner_skip,
                      int64_t residual, float eps, const float* grad_y, float* d_t, float* d_fc1_weight,
                      float* d_fc1_bias, float* d_depthwise_weight, float* d_depthwise_bias, float* d_fc2_weight,
                      float* d_fc2_bias, float* d_norm_weight, float* d_norm_bias, float* d_inner_norm_weight,
                      float* d_inner_norm_bias) {
  const Call call(threads, t, batch, height, width, channels, hidden, fc1_weight, fc1_bias, depthwise_weight,
                  depthwise_bias, fc2_bias, norm_weight, norm_bias, inner_norm_weight, inner_norm_bias, norm, inner_norm,
                  inner_skip, residual, eps);
  const Packed fc2_back(fc2_weight, channels, hidden, hidden, 1, threads);    // (C, D)
  const Packed fc1_back(fc1_weight, hidden, channels, channels, 1, threads);  // (D, C)
  const Tiles tiles(call, 8, threads);
  const Sums at(call);
  const int64_t c_row = call.c_row, d_row = call.d_row, widest = tiles.widest(), band = tiles.band;
  const int64_t beside = tiles.count > 1;  // columns of dv beside the tile, and of u beside those of dv
  const Unset partial(tiles.parts * at.size);

  parallel(tiles.parts, [&](int64_t part) {
    float* sums = partial + part * at.size;
    clear(sums, at.size);
    Ring u(widest + 2 + 2 * beside, d_row, band), dv(widest + 2, d_row, band);
    const Scratch tokens(std::max<int64_t>(band, 2) * u.pixels * c_row), a(band * (widest + 2 * beside) * d_row);
    const Scratch da(band * (widest + 2 * beside) * d_row), d_tokens(band * widest * c_row);
    const Scratch v(BLOCK * d_row), band_sums(2 * d_row + 2 * c_row);
    float *band_inner = band_sums, *band_norm = band_inner + 2 * d_row;

    tiles.of(part, [&](int64_t image, int64_t left, int64_t right, int64_t first, int64_t last) {
      const int64_t columns = right - left;
      const int64_t u_from = std::max<int64_t>(left - 1 - beside, 0), u_to = std::min(right + 1 + beside, width);
      const int64_t v_from = std::max<int64_t>(left - beside, 0), v_to = std::min(right + beside, width);
      const int64_t v_columns = v_to - v_from;
      u.begin(first);
      dv.begin(first - 1);

      const auto make_u = [&](Rows rows) {  // column x of the image is column x - left + 1 + beside of the ring
        make_hidden(call, image, rows, u_from, u_to, u_from - left + 1 + beside, u, tokens);
      };

      // dv of a band from u of one more row on either side; column x is column x - left + 1 of dv, and x - v_from of a and
      // da. Sums take a pixel once, where it belongs to the tile.
      const auto make_dv = [&](Rows of_band) {
        const Rows rows = of_band.within(0, height), own = of_band.within(first, last);
        dv.clear_beyond(of_band, rows);
        if (!rows.count()) return;

        const float* grad = grad_y + (call.token(image, rows.first, v_from) - t);
        product(rows.count() * v_columns, hidden, channels, {grad, channels, 1}, fc2_back, da, d_row);

        clear(band_inner, 2 * d_row);
        for (int64_t y = rows.first; y < rows.last; ++y) {
          const float *above = u.at(y - 1) + beside * d_row, *here = u.at(y) + beside * d_row;
          const float* below = u.at(y + 1) + beside * d_row;
          const auto some = [&](int64_t x, int64_t end, bool add) {  // columns of the image
            for (; x < end; x += BLOCK) {
              const int64_t n = std::min(BLOCK, end - x), at = (x - left) * d_row;
              const int64_t in_band = ((y - rows.first) * v_columns + x - v_from) * d_row;
              convolve(above + at, here + at, below + at, n, call, false, call.depthwise_bias, v);
              norm_and_gelu_backward(v, da + in_band, n, call, a + in_band, dv.at(y) + at + d_row,
                                     add ? band_inner : nullptr, add ? band_inner + d_row : nullptr);
            }
          };
          const bool is_own = y >= first && y < last;
          some(v_from, left, false);
          some(left, right, is_own);
          some(right, v_to, false);
          if (is_own)
            add_tap_gradients(above, here, below, dv.at(y) + d_row, columns, d_row, at.taps(sums), at.depthwise_bias(sums));
        }
        if (!own.count()) return;

        add_to(at.inner_weight(sums), band_inner, 2 * d_row);
        const int64_t pixels = own.count() * columns;
        const float* own_grad = grad_y + (call.token(image, own.first, left) - t);
        const float* own_a = a + ((own.first - rows.first) * v_columns + left - v_from) * d_row;
        add_product(channels, hidden, pixels, {own_grad, 1, channels}, {own_a, d_row}, at.fc2(sums), d_row);
        add_rows(own_grad, channels, pixels, channels, band_norm, at.fc2_bias(sums));
      };

      // dt of a band from dv of one more row on either side. du takes the place of da.
      const auto make_dt = [&](Rows rows) {
        if (!rows.count()) return;
        const float* du = da;
        const int64_t pixels = rows.count() * columns;
        for (int64_t y = rows.first; y < rows.last; ++y)
          convolve(dv.at(y - 1), dv.at(y), dv.at(y + 1), columns, call, true, nullptr,
                   da + (y - rows.first) * columns * d_row);
        add_rows(du, d_row, pixels, d_row, band_inner, at.fc1_bias(sums));

        const float* tokens_in = call.token(image, rows.first, left);
        layer_norm(tokens_in, channels, pixels, channels, norm, call.norm_weight, call.norm_bias, eps, tokens, c_row);
        add_product(channels, hidden, pixels, {tokens, 1, c_row}, {du, d_row}, at.fc1(sums), d_row);

        product(pixels, channels, hidden, {du, d_row, 1}, fc1_back, d_tokens, c_row);
        clear(band_norm, 2 * c_row);
        layer_norm_backward(tokens_in, channels, d_tokens, c_row, pixels, channels, norm, call.norm_weight, eps,
                            residual ? grad_y + (tokens_in - t) : nullptr, d_t + (tokens_in - t), channels, band_norm,
                            band_norm + c_row);
        add_to(at.norm_weight(sums), band_norm, 2 * c_row);
      };

      make_u({first - 2, first});
      for (int64_t y = first - 1; y <= last; y += band) {
        const int64_t end = std::min(y + band, last + 1);
        make_u({y + 1, end + 1});
        make_dv({y, end});
        make_dt(Rows{y - 1, end - 1}.within(first, last));
      }
    });
  });

  parallel(threads, (hidden + SUMMED - 1) / SUMMED, [&](int64_t number) {
    const int64_t d = number * SUMMED, n = std::min(SUMMED, hidden - d);
    for (int64_t part = 1; part < tiles.parts; ++part)
      for (int64_t row = 0; row < at.rows; ++row)
        add_to(partial + row * d_row + d, partial + part * at.size + row * d_row + d, n);

    turn(at.fc1(partial) + d, d_row, channels, n, 1.0f, d_fc1_weight + d * channels, channels);
    turn(at.taps(partial) + d, d_row, 9, n, 1.0f, d_depthwise_weight + d * 9, 9);
    copy_rows(at.fc2(partial) + d, d_row, channels, n, d_fc2_weight + d, hidden);
    copy_row(at.fc1_bias(partial) + d, n, d_fc1_bias, d);
    copy_row(at.depthwise_bias(partial) + d, n, d_depthwise_bias, d);
    copy_row(at.inner_weight(partial) + d, n, d_inner_norm_weight, d);
    copy_row(at.inner_bias(partial) + d, n, d_inner_norm_bias, d);
  });
  for (int64_t part = 1; part < tiles.parts; ++part)
    add_to(at.fc2_bias(partial), at.fc2_bias(partial + part * at.size), 3 * c_row);
  copy_row(at.fc2_bias(partial), channels, d_fc2_bias);
  copy_row(at.norm_weight(partial), channels, d_norm_weight);
  copy_row(at.norm_bias(partial), channels, d_norm_bias);
}

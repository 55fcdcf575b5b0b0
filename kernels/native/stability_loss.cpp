// The stability loss of queries q and keys k, and its gradients in the same pass where they are asked for.
//
//   S = q k^T / scale    A = softmax(S) over the last axis    loss = 2 / (B T^2) sum_i (1 - A_ii)
//
// A row of A sums to 1, so that is the mean absolute difference between A and the identity. With m_i the largest score of
// row i but the diagonal, P_ij = exp(s_ij - m_i) for j != i, and total_i their sum:
//
//   x_i = m_i + log(total_i) - s_ii    1 - A_ii = sigmoid(x_i)    P_ii = -total_i
//   f_i = 2 / (scale B T^2) A_ii (1 - A_ii) / total_i    dq = f (P k)    dk = P^T (f q), times the loss's own gradient
//
// Nothing is taken from 1: losses and gradients near zero keep their digits. A block of rows of S, then of P, stays in
// the second-level cache from its product to its gradients, so no score is made twice. Sums over rows: of a block first,
// then of the part, then of all parts in their order.
#include "native.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"

namespace {

constexpr int64_t CACHE = 128 * 1024;  // numbers of a block of rows
constexpr int64_t FEW = 8, MANY = 64;  // rows of a block: least and most
constexpr int64_t KEYS = 256;          // keys that are in the cache together with their gradients, for a block
constexpr int64_t TURNED = 64;         // keys whose gradients a thread adds up and turns, a divisor of KEYS

struct Row4 {  // four vectors side by side
  vec v[4];
};

INLINE Row4 load4(const float* p) { return {load(p), load(p + LANES), load(p + 2 * LANES), load(p + 3 * LANES)}; }

// 1 - A_ii of a row, and A_ii (1 - A_ii) / total_i.
struct Result {
  float loss, slope;
};

// From the scores of a row, which become P; diagonal: number of P_ii; width: of whole Row4s, filled up with -inf.
Result powers_of_row(float* s, int64_t width, int64_t diagonal) {
  const float itself = s[diagonal];
  s[diagonal] = -INFINITY;

  // Begins at -1e30, not -inf, for -inf - -inf is NaN: a row may have no others.
  Row4 top = {all(-1e30f), all(-1e30f), all(-1e30f), all(-1e30f)};
  for (int64_t j = 0; j < width; j += 4 * LANES) {
    const Row4 scores = load4(s + j);
    UNROLL for (int i = 0; i < 4; ++i) top.v[i] = larger(top.v[i], scores.v[i]);
  }
  const float most = max(larger(larger(top.v[0], top.v[1]), larger(top.v[2], top.v[3])));

  Row4 sums = {};
  for (int64_t j = 0; j < width; j += 4 * LANES) {
    const Row4 scores = load4(s + j);
    UNROLL for (int i = 0; i < 4; ++i) {
      const vec power = exp_below(scores.v[i] - most);
      sums.v[i] += power;
      store(s + j + i * LANES, power);
    }
  }
  const float total = sum((sums.v[0] + sums.v[1]) + (sums.v[2] + sums.v[3]));
  s[diagonal] = -total;

  // sigmoid(x) and sigmoid'(x) without overflow.
  const float x = most + std::log(total) - itself, e = std::exp(-std::fabs(x));
  const float slope = e / ((1.0f + e) * (1.0f + e));
  return {(x < 0.0f ? e : 1.0f) / (1.0f + e), total == 0.0f ? 0.0f : slope / total};
}

}  // namespace

void stability_loss(int64_t threads, const float* queries, const float* keys, int64_t batch, int64_t patches,
                    int64_t channels, float scale, float* loss, float* d_queries, float* d_keys) {
  const int64_t c_row = padded(channels), width = (patches + 4 * LANES - 1) / (4 * LANES) * (4 * LANES);
  const int64_t rows = std::min(MANY, std::max(FEW, CACHE / width / FEW * FEW));
  const int64_t blocks = (patches + rows - 1) / rows;
  const int64_t pieces = std::min(blocks, (threads + batch - 1) / std::max<int64_t>(batch, 1)), parts = batch * pieces;
  const int64_t keys_row = std::min(KEYS, padded(patches)), key_blocks = (patches + KEYS - 1) / KEYS;
  const int64_t matrix = d_keys ? key_blocks * keys_row * channels : 0;
  const double mean = 2.0 / (static_cast<double>(batch) * patches * patches);
  const float of_score = static_cast<float>(mean / scale);
  const Scratch partial(parts * matrix);  // of a part: (f q)^T P, in pieces (C, KEYS) one behind the other
  std::vector<double> losses(parts);

  parallel(threads, parts, [&](int64_t part) {
    const int64_t begin = part / pieces * patches * channels, piece = part % pieces;  // of its image
    float* sums = partial + part * matrix;
    const Packed to_scores(keys + begin, channels, patches, 1, channels);  // (C, T)
    const Scratch wide_keys(d_keys ? patches * c_row : 0), s(rows * width), q(rows * c_row), d_q(rows * c_row);
    if (d_keys) copy_rows(keys + begin, channels, patches, channels, wide_keys, c_row);
    std::vector<float> factors(rows);

    const int64_t last = std::min(patches, blocks * (piece + 1) / pieces * rows);
    for (int64_t first = blocks * piece / pieces * rows; first < last; first += rows) {
      const int64_t some = std::min(rows, last - first);
      const float* block = queries + begin + first * channels;
      for (int64_t i = 0; i < some; ++i)
        for (int64_t c = 0; c < channels; ++c) q[i * c_row + c] = block[i * channels + c] / scale;
      product(some, patches, channels, {q, c_row, 1}, to_scores, s, width);  // [some, T]

      for (int64_t i = 0; i < some; ++i) {
        for (int64_t j = patches; j < width; ++j) s[i * width + j] = -INFINITY;
        const Result result = powers_of_row(s + i * width, width, first + i);
        losses[part] += result.loss;
        factors[i] = result.slope * of_score;
      }
      if (!d_keys) continue;

      for (int64_t i = 0; i < some; ++i)
        for (int64_t c = 0; c < channels; ++c) q[i * c_row + c] = block[i * channels + c] * factors[i];
      clear(d_q, some * c_row);
      for (int64_t j = 0; j < patches; j += KEYS) {
        const int64_t n = std::min(KEYS, patches - j);
        add_product(some, channels, n, {s + j, width, 1}, {wide_keys + j * c_row, c_row}, d_q, c_row);
        add_product(channels, n, some, {q, 1, c_row}, {s + j, width}, sums + j * channels, keys_row);
      }
      for (int64_t i = 0; i < some; ++i)
        for (int64_t c = 0; c < channels; ++c)
          d_queries[begin + (first + i) * channels + c] = d_q[i * c_row + c] * factors[i];
    }
  });

  const int64_t some_keys = (patches + TURNED - 1) / TURNED;
  parallel(threads, d_keys ? batch * some_keys : 0, [&](int64_t number) {
    const int64_t image = number / some_keys, first = number % some_keys * TURNED, n = std::min(TURNED, patches - first);
    float* sums = partial + image * pieces * matrix + first / KEYS * KEYS * channels + first % KEYS;  // (C, n)
    for (int64_t piece = 1; piece < pieces; ++piece)
      for (int64_t c = 0; c < channels; ++c) add_to(sums + c * keys_row, sums + piece * matrix + c * keys_row, n);
    turn(sums, keys_row, channels, n, 1.0f, d_keys + (image * patches + first) * channels, channels);
  });

  double total = 0.0;
  for (double part : losses) total += part;
  *loss = static_cast<float>(total * mean);
}

// Efficient attention, forward and backward. With n = LayerNorm(x), p the keys' softmax over positions and q the
// queries' softmax over the channels of each head
//
//   gathered = p^T n         M = (gathered Wv^T + bv) Wr^T, head by head         y = x + q M + br
//
// so neither values nor attended tokens are ever made; the launcher makes M, which is small. A block of tokens passes
// through all products of a kernel while it is in the cache; keys and queries are computed again in the backward, so
// nothing but x waits for it. The keys' softmax over positions is that of flash attention: what was summed is scaled
// when a larger key turns up.
//
//   dq = dy M^T              dM = q^T dy              queries' logits: q (dq - sum of q dq over the head)
//   dp = n dgathered^T       keys: p (dp - balance), balance the sum of gathered dgathered
//   dn = (queries' logits) Wq + (keys) Wk + p dgathered
#include "native.h"
#include "normed_map.h"
#include "norms.h"
#include "parallel.h"
#include "parts.h"
#include "products.h"
#include "rows.h"

namespace {

constexpr int64_t BLOCK = 64;         // tokens
constexpr int64_t SHORT = BLOCK;      // fewest tokens that are worth a part

// The tokens (count, channels), through the batch norm, and then through the LayerNorm.
struct Tokens {
  Map map;
  bool norm;
  float eps;
  Row weight, bias;

  Tokens(const float* x, int64_t count, int64_t channels, const float* batch_norm, const float* weight,
         const float* bias, bool norm, float eps)
      : map(x, count, channels, batch_norm), norm(norm), eps(eps), weight(weight, channels, 1.0f),
        bias(bias, channels, 0.0f) {}
  // n of a block; the tokens before the LayerNorm, made in scratch (tokens, row) where there is a batch norm.
  Left block(int64_t first, int64_t tokens, float* scratch, float* n) const {
    const Left x = map.read(first, tokens, true, scratch);
    layer_norm(x.p, x.row, tokens, map.channels, norm, weight, bias, eps, n, map.row);
    return x;
  }
};

// Softmax over each head's part of rows of keys numbers.
void softmax(float* q, int64_t rows, int64_t row, int64_t heads, int64_t width) {
  const Tail tail(width);
  for (int64_t r = 0; r < rows; ++r, q += row) {
    for (int64_t head = 0; head < heads; ++head) {
      float* p = q + head * width;
      vec top = all(-INFINITY);
      for (int64_t j = 0; j < tail.whole; j += LANES) top = larger(top, load(p + j));
      if (tail.rest) top = larger(top, tail.or_else(tail.load(p + tail.whole), -INFINITY));
      const vec most = all(max(top));

      vec total = zeros();
      for (int64_t j = 0; j < tail.whole; j += LANES) {
        const vec power = exp_below(load(p + j) - most);
        total += power;
        store(p + j, power);
      }
      vec last = zeros();
      if (tail.rest) total += last = tail.only(exp_below(tail.load(p + tail.whole) - most));

      const vec share = all(1.0f / sum(total));
      for (int64_t j = 0; j < tail.whole; j += LANES) store(p + j, load(p + j) * share);
      if (tail.rest) tail.store(p + tail.whole, last * share);
    }
  }
}

// dq = q (dq - sum of q dq over the head), head by head.
void softmax_backward(const float* q, float* dq, int64_t rows, int64_t row, int64_t heads, int64_t width) {
  const Tail tail(width);
  for (int64_t r = 0; r < rows; ++r, q += row, dq += row) {
    for (int64_t head = 0; head < heads; ++head) {
      const float* p = q + head * width;
      float* d = dq + head * width;
      vec product = zeros();
      for (int64_t j = 0; j < tail.whole; j += LANES) product += load(p + j) * load(d + j);
      if (tail.rest) product += tail.load(p + tail.whole) * tail.load(d + tail.whole);
      const float balance = sum(product);

      for (int64_t j = 0; j < tail.whole; j += LANES) store(d + j, load(p + j) * (load(d + j) - balance));
      if (tail.rest) tail.store(d + tail.whole, tail.load(p + tail.whole) * (tail.load(d + tail.whole) - balance));
    }
  }
}

// Raises the maxima to those of a block of keys; where they rise, what was summed with the old ones is scaled.
void raise(const float* k, int64_t tokens, int64_t keys, int64_t k_row, int64_t c_row, float* maximum, float* total,
           float* gathered) {
  for (int64_t j = 0; j < k_row; j += LANES) {
    const vec before = load(maximum + j);
    vec after = before;
    for (int64_t i = 0; i < tokens; ++i) after = larger(after, load(k + i * k_row + j));
    const vec shrink = after > before ? exp_below(before - after) : all(1.0f);
    store(maximum + j, after);
    store(total + j, load(total + j) * shrink);
    for (int64_t lane = 0; lane < LANES && j + lane < keys; ++lane) {
      if (shrink[lane] == 1.0f) continue;
      float* row = gathered + (j + lane) * c_row;
      for (int64_t c = 0; c < c_row; c += LANES) store(row + c, load(row + c) * shrink[lane]);
    }
  }
}

}  // namespace

void efficient_attention_gather(int64_t threads, const float* x, int64_t batch, int64_t tokens, int64_t channels,
                                int64_t keys, const float* key_weight, const float* norm_weight,
                                const float* norm_bias, const float* batch_norm, int64_t norm, float eps,
                                float* log_sum, float* gathered) {
  const Tokens all(x, batch * tokens, channels, batch_norm, norm_weight, norm_bias, norm, eps);
  const Packed to_keys(key_weight, channels, keys, 1, channels, threads);  // (C, Ck)
  const Parts parts(threads, batch, tokens, SHORT, 1);
  const int64_t c_row = padded(channels), k_row = padded(keys), size = keys * c_row + 2 * k_row;
  const Scratch partial(std::max<int64_t>(parts.count(), 1) * size);  // of a part: sums of p n, maxima, sums of p

  parallel(threads, parts.count(), [&](int64_t part) {
    float *sums = partial + part * size, *maximum = sums + keys * c_row, *total = maximum + k_row;
    for (int64_t j = 0; j < k_row; ++j) maximum[j] = -INFINITY;
    const Scratch scratch(BLOCK * c_row), n(BLOCK * c_row), k(BLOCK * k_row);

    parts.of(part, BLOCK, [&](int64_t first, int64_t some) {
      all.block(first, some, scratch, n);                                            // [some, C]
      product(some, keys, channels, {n, c_row, 1}, to_keys, k, k_row);               // [some, Ck]

      raise(k, some, keys, k_row, c_row, maximum, total, sums);
      for (int64_t j = 0; j < k_row; j += LANES) {
        const vec most = load(maximum + j);
        vec added = zeros();
        for (int64_t i = 0; i < some; ++i) {
          const vec power = exp_below(load(k + i * k_row + j) - most);
          store(k + i * k_row + j, power);
          added += power;
        }
        store(total + j, load(total + j) + added);
      }
      add_product(keys, channels, some, {k, 1, k_row}, {n, c_row}, sums, c_row);     // [Ck, C]
    });
  });

  // Parts of an image, in their order, each scaled to the largest maximum.
  parallel(threads, batch, [&](int64_t image) {
    const float* of_image = partial + image * parts.pieces * size;
    for (int64_t key = 0; key < keys; ++key) {
      const auto maximum = [&](int64_t piece) { return of_image[piece * size + keys * c_row + key]; };
      float most = maximum(0), total = 0.0f;
      for (int64_t piece = 1; piece < parts.pieces; ++piece) most = most < maximum(piece) ? maximum(piece) : most;

      float* to = gathered + (image * keys + key) * channels;
      clear(to, channels);
      for (int64_t piece = 0; piece < parts.pieces; ++piece) {
        const float scale = std::exp(maximum(piece) - most), *from = of_image + piece * size;
        total += from[keys * c_row + k_row + key] * scale;
        for (int64_t c = 0; c < channels; ++c) to[c] += from[key * c_row + c] * scale;
      }
      for (int64_t c = 0; c < channels; ++c) to[c] /= total;
      log_sum[image * keys + key] = most + std::log(total);
    }
  });
}

void efficient_attention_attend(int64_t threads, const float* x, int64_t batch, int64_t tokens, int64_t channels,
                                int64_t keys, int64_t heads, const float* query_weight, const float* query_bias,
                                const float* reprojection_bias, const float* norm_weight, const float* norm_bias,
                                const float* batch_norm, int64_t norm, int64_t residual, float eps, const float* folded,
                                float* y) {
  const Tokens all(x, batch * tokens, channels, batch_norm, norm_weight, norm_bias, norm, eps);
  const Packed to_queries(query_weight, channels, keys, 1, channels, threads);  // (C, Ck)
  const Row queries_bias(query_bias, keys, 0.0f), last_bias(reprojection_bias, channels, 0.0f);
  const Parts parts(threads, batch, tokens, SHORT, 1);
  const int64_t c_row = padded(channels), k_row = padded(keys);

  parallel(threads, parts.count(), [&](int64_t part) {
    const Packed attend(folded + parts.image(part) * keys * channels, keys, channels, channels, 1);  // (Ck, C)
    const Scratch scratch(BLOCK * c_row), n(BLOCK * c_row), q(BLOCK * k_row), out(BLOCK * c_row);
    parts.of(part, BLOCK, [&](int64_t first, int64_t some) {
      const Left here = all.block(first, some, scratch, n);                                         // [some, C]
      product_plus(some, keys, channels, {n, c_row, 1}, to_queries, queries_bias, q, k_row);        // [some, Ck]
      softmax(q, some, k_row, heads, keys / heads);
      product_plus(some, channels, keys, {q, k_row, 1}, attend, last_bias, out, c_row);             // [some, C]

      for (int64_t i = 0; i < some; ++i) {
        const float *attended = out + i * c_row, *token = here.p + i * here.row;
        float* to = y + (first + i) * channels;
        for (int64_t c = 0; c < channels; ++c) to[c] = residual ? attended[c] + token[c] : attended[c];
      }
    });
  });
}

void efficient_attention_queries_backward(int64_t threads, const float* x, int64_t batch, int64_t tokens,
                                          int64_t channels, int64_t keys, int64_t heads, const float* query_weight,
                                          const float* query_bias, const float* norm_weight, const float* norm_bias,
                                          const float* batch_norm, int64_t norm, float eps, const float* folded,
                                          const float* grad_y, float* d_n, float* d_folded, float* d_query_weight,
                                          float* d_query_bias, float* d_reprojection_bias) {
  const Tokens all(x, batch * tokens, channels, batch_norm, norm_weight, norm_bias, norm, eps);
  const Packed to_queries(query_weight, channels, keys, 1, channels, threads);  // (C, Ck)
  const Packed from_queries(query_weight, keys, channels, channels, 1, threads);  // (Ck, C)
  const Row queries_bias(query_bias, keys, 0.0f);
  const Parts parts(threads, batch, tokens, SHORT, 1);
  const int64_t c_row = padded(channels), k_row = padded(keys), matrix = keys * c_row;
  const int64_t size = 2 * matrix + k_row + c_row;
  const Scratch partial(std::max<int64_t>(parts.count(), 1) * size);  // of a part: dM, dWq, dbq, dbr

  parallel(threads, parts.count(), [&](int64_t part) {
    float *d_m = partial + part * size, *d_weight = d_m + matrix, *d_bias = d_weight + matrix, *d_last = d_bias + k_row;
    const Packed attend_back(folded + parts.image(part) * keys * channels, channels, keys, 1, channels);  // (C, Ck)
    const Scratch n(BLOCK * c_row), q(BLOCK * k_row), dy(BLOCK * c_row), dq(BLOCK * k_row), d_block(BLOCK * c_row);
    const Scratch scratch(BLOCK * c_row), sums(std::max(c_row, k_row));

    parts.of(part, BLOCK, [&](int64_t first, int64_t some) {
      copy_rows(grad_y + first * channels, channels, some, channels, dy, c_row);
      all.block(first, some, scratch, n);
      product_plus(some, keys, channels, {n, c_row, 1}, to_queries, queries_bias, q, k_row);        // [some, Ck]
      softmax(q, some, k_row, heads, keys / heads);

      add_product(keys, channels, some, {q, 1, k_row}, {dy, c_row}, d_m, c_row);                    // [Ck, C]
      product(some, keys, channels, {dy, c_row, 1}, attend_back, dq, k_row);                        // [some, Ck]
      softmax_backward(q, dq, some, k_row, heads, keys / heads);

      add_product(keys, channels, some, {dq, 1, k_row}, {n, c_row}, d_weight, c_row);               // [Ck, C]
      add_rows(dq, k_row, some, keys, sums, d_bias);
      add_rows(dy, c_row, some, channels, sums, d_last);
      product(some, channels, keys, {dq, k_row, 1}, from_queries, d_block, c_row);                  // [some, C]
      copy_rows(d_block, c_row, some, channels, d_n + first * channels, channels);
    });
  });

  for (int64_t part = 0; part < parts.count(); ++part) {
    const float* d_m = partial + part * size;
    float* to = d_folded + parts.image(part) * keys * channels;
    for (int64_t key = 0; key < keys; ++key) {
      if (part % parts.pieces == 0) clear(to + key * channels, channels);
      add_to(to + key * channels, d_m + key * c_row, channels);
    }
    if (part) add_to(partial + matrix, d_m + matrix, size - matrix);
  }
  const float* sums = partial + matrix;
  copy_rows(sums, c_row, keys, channels, d_query_weight, channels);
  copy_row(sums + matrix, keys, d_query_bias);
  copy_row(sums + matrix + k_row, channels, d_reprojection_bias);
}

void efficient_attention_keys_backward(int64_t threads, const float* x, int64_t batch, int64_t tokens, int64_t channels,
                                       int64_t keys, const float* key_weight, const float* norm_weight,
                                       const float* norm_bias, const float* batch_norm, int64_t norm, float eps,
                                       const float* log_sum, const float* gathered, const float* d_gathered,
                                       const float* balance, const float* grad_y, float* d_x, float* d_key_weight,
                                       float* d_norm_weight, float* d_norm_bias, float* d_batch_norm) {
  const Tokens all(x, batch * tokens, channels, batch_norm, norm_weight, norm_bias, norm, eps);
  const Packed to_keys(key_weight, channels, keys, 1, channels, threads);  // (C, Ck)
  const Packed from_keys(key_weight, keys, channels, channels, 1, threads);  // (Ck, C)
  const Parts parts(threads, batch, tokens, SHORT, 1);
  const int64_t c_row = padded(channels), k_row = padded(keys), matrix = keys * c_row, size = matrix + 4 * c_row;
  const Scratch partial(std::max<int64_t>(parts.count(), 1) * size);  // of a part: dWk, gradients of the norms' vectors

  parallel(threads, parts.count(), [&](int64_t part) {
    float *d_weight = partial + part * size, *d_affine = d_weight + matrix;
    const int64_t image = parts.image(part);
    const float* of_image = d_gathered + image * keys * channels;
    const Packed gather_back(of_image, channels, keys, 1, channels);   // (C, Ck)
    const Packed gather(of_image, keys, channels, channels, 1);        // (Ck, C)
    const Row logarithm(log_sum + image * keys, keys, 0.0f), rest(balance + image * keys, keys, 0.0f);
    const Scratch n(BLOCK * c_row), p(BLOCK * k_row), dk(BLOCK * k_row), dn(BLOCK * c_row), sums(4 * c_row);
    const Scratch excess(k_row), scratch(BLOCK * c_row);

    parts.of(part, BLOCK, [&](int64_t first, int64_t some) {
      float* d_here = d_x + first * channels;
      copy_rows(d_here, channels, some, channels, dn, c_row);
      const Left here = all.block(first, some, scratch, n);
      product(some, keys, channels, {n, c_row, 1}, to_keys, p, k_row);                     // [some, Ck]
      product(some, keys, channels, {n, c_row, 1}, gather_back, dk, k_row);                // [some, Ck]
      for (int64_t i = 0; i < some; ++i) {
        for (int64_t j = 0; j < k_row; j += LANES) {
          const int64_t at = i * k_row + j;
          const vec power = exp_below(load(p + at) - load(logarithm + j));
          store(p + at, power);
          const vec d = power * (load(dk + at) - load(rest + j));
          store(dk + at, d);
          store(excess + j, load(excess + j) + d);
        }
      }
      add_product(keys, channels, some, {dk, 1, k_row}, {n, c_row}, d_weight, c_row);      // [Ck, C]
      add_product(some, channels, keys, {dk, k_row, 1}, from_keys, dn, c_row);             // [some, C]
      add_product(some, channels, keys, {p, k_row, 1}, gather, dn, c_row);

      clear(sums, 4 * c_row);
      layer_norm_backward(here.p, here.row, dn, c_row, some, channels, norm, all.weight, eps,
                          grad_y ? grad_y + first * channels : nullptr, d_here, channels, sums, sums + c_row);
      if (batch_norm) all.map.sum(first, some, d_here, sums + 2 * c_row, sums + 3 * c_row);
      add_to(d_affine, sums, 4 * c_row);
    });

    // dk sums to 0 over positions but for the rounding of r, which every position has in common.
    for (int64_t key = 0; key < keys; ++key) {
      const float* row = gathered + (image * keys + key) * channels;
      for (int64_t c = 0; c < channels; ++c) d_weight[key * c_row + c] -= excess[key] * row[c];
    }
  });

  for (int64_t part = 1; part < parts.count(); ++part) add_to(partial, partial + part * size, size);
  copy_rows(partial, c_row, keys, channels, d_key_weight, channels);
  copy_row(partial + matrix, channels, d_norm_weight);
  copy_row(partial + matrix + c_row, channels, d_norm_bias);
  if (!batch_norm) return;

  // Through the batch norm, whose sums are known now.
  float* d_batch = partial + matrix + 2 * c_row;
  all.map.hand_out(d_batch, d_batch_norm);
  parallel(threads, parts.count(), [&](int64_t part) {
    const Scratch dz(BLOCK * c_row);
    parts.of(part, BLOCK, [&](int64_t first, int64_t some) {
      copy_rows(d_x + first * channels, channels, some, channels, dz, c_row);
      all.map.write(first, some, dz, d_batch, d_batch + c_row, d_x);
    });
  });
}

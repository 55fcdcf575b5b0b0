// Windowed attention of volumes, forward and backward, whose windows have hundreds of tokens; the formulas are those of
// cross_scale_attention.cpp.
//
// Lanes of vectors are queries: scores lie as [keys, queries], so that the largest of a query's scores and their sum need
// no step across lanes, and a head of 8 channels fills whole vectors. A block of queries meets all keys of its window
// while the scores are in the cache; the forward keeps of each query the largest score and 1 / the sum of its powers, from
// which the backward makes the probabilities again. Powers are those of 2: log2(e) is in the queries and in the bias.
//
// Windows of a head come one after the other, parts of such are dealt to threads. Sums over windows, of the bias and of
// the vectors outside the volume: of a few windows first, then of a part, then of all parts in their order. With a halo,
// where a key has gradients from several windows, a part has whole heads.
#include "native.h"
#include "parallel.h"
#include "volume_windows.h"

namespace {

// Scores of a block of queries and some keys, in registers: the bias, and products with the queries (width, row); each(key,
// vector, score) for every one.
template <int KEYS, typename Each>
INLINE void some_scores(const LaneWindow& window, const LaneBias& bias, const float* queries, const float* keys, int64_t first,
                        int64_t key, const Each& each) {
  const int64_t width = window.call.width;
  vec scores[KEYS][VECTORS];
  UNROLL for (int i = 0; i < KEYS; ++i)
    UNROLL for (int v = 0; v < VECTORS; ++v) scores[i][v] = load(bias.row(window.place[key + i]) + first + v * LANES);

  for (int64_t c = 0; c < width; ++c) {
    vec q[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; ++v) q[v] = load(queries + c * window.row + first + v * LANES);
    UNROLL for (int i = 0; i < KEYS; ++i) {
      const vec factor = all(keys[(key + i) * width + c]);
      UNROLL for (int v = 0; v < VECTORS; ++v) scores[i][v] += factor * q[v];
    }
  }
  UNROLL for (int i = 0; i < KEYS; ++i)
    UNROLL for (int v = 0; v < VECTORS; ++v)
      each(key + i, v, window.masked(scores[i][v], key + i, first + v * LANES));
}

// The same of all keys.
template <typename Each>
INLINE void all_scores(const LaneWindow& window, const LaneBias& bias, const float* queries, const float* keys, int64_t first,
                       const Each& each) {
  constexpr int MOST = REGISTERS == 32 ? 12 : 4;
  const int64_t n = window.keys();
  int64_t key = 0;
  for (; key + MOST <= n; key += MOST) some_scores<MOST>(window, bias, queries, keys, first, key, each);
  for (; key < n; ++key) some_scores<1>(window, bias, queries, keys, first, key, each);
}

// Powers [keys, BLOCK], 2^(score - most), most: the largest of a query; share: 1 / the sum of its powers. Both [BLOCK]. A
// query that sees no key has powers and a share of 0.
void softmax(const LaneWindow& window, const LaneBias& bias, const float* queries, const float* keys, int64_t first, float* s,
             float* most, float* share) {
  const int64_t n = window.keys();
  vec top[VECTORS], total[VECTORS] = {};
  UNROLL for (int v = 0; v < VECTORS; ++v) top[v] = all(-INFINITY);
  all_scores(window, bias, queries, keys, first, [&](int64_t key, int v, vec score) {
    top[v] = larger(top[v], score);
    store(s + key * BLOCK + v * LANES, score);
  });
  UNROLL for (int v = 0; v < VECTORS; ++v) top[v] = at_least(top[v], all(-FLT_MAX));

  for (int64_t key = 0; key < n; ++key) {
    UNROLL for (int v = 0; v < VECTORS; ++v) {
      float* at = s + key * BLOCK + v * LANES;
      const vec power = exp2(load(at) - top[v]);
      total[v] += power;
      store(at, power);
    }
  }
  UNROLL for (int v = 0; v < VECTORS; ++v) {
    store(most + v * LANES, top[v]);
    store(share + v * LANES, total[v] == 0.0f ? zeros() : 1.0f / total[v]);
  }
}

}  // namespace

void volume_attention_forward(int64_t threads, const float* q, const float* k, const float* v, const float* bias,
                              const float* pad_k, const float* pad_v, const void* places, const void* geometry,
                              int64_t batch, int64_t heads, int64_t width, int64_t table, int64_t pad, float scale,
                              float seam, float* y, float* sums) {
  const WindowedCall call(q, k, v, bias, pad_k, pad_v, static_cast<const int64_t*>(places), static_cast<const int64_t*>(geometry),
                          batch, heads, width, table, pad, scale, seam);
  const HeadParts parts(call, threads);

  parallel(parts.count, [&](int64_t part) {
    LaneWindow window(call);
    LaneBias added(call);
    const Scratch across(width * window.row), k_rows(call.keys * width), v_rows(call.keys * width);
    const Scratch scores(call.keys * BLOCK), out(padded(width) * BLOCK), most(window.row), share(window.row);

    parts.of(part, [&](int64_t head) { added.read(head); }, [&](int64_t head, int64_t image, const int64_t* at) {
      window.find(image, at);
      const int64_t n = window.keys();
      window.queries_across(q, call.of_q, head, scale * LOG2_E, across);                                 // [width, queries]
      window.key_rows(k, call.of_k, pad_k, head, k_rows);                                                // [keys, width]
      window.key_rows(v, call.of_v, pad_v, head, v_rows);

      for (int64_t first = 0; first < window.row; first += BLOCK) {
        if (window.is_empty(first)) continue;
        softmax(window, added, across, k_rows, first, scores, most + first, share + first);              // [keys, BLOCK]
        product(width, BLOCK, n, {v_rows, 1, width}, {scores, BLOCK}, out, BLOCK);                       // [width, BLOCK]
        window.write_across(out, first, share + first, y, call.of_y, head);
      }
      window.write_numbers(most, head, 0, sums);
      window.write_numbers(share, head, 1, sums);
    }, [](int64_t) {});
  });
}

namespace {

// Probabilities [keys, BLOCK]; and `slopes`, their gradients, become those of the scores, which are added to the bias's.
void softmax_backward(const LaneWindow& window, const LaneBias& bias, const float* queries, const float* keys, int64_t first,
                      const float* most, const float* share, const float* balance, float* s, float* slopes, float* d_bias) {
  const int64_t n = window.keys();
  all_scores(window, bias, queries, keys, first, [&](int64_t key, int v, vec score) { store(s + key * BLOCK + v * LANES, score); });

  for (int64_t key = 0; key < n; ++key) {
    UNROLL for (int v = 0; v < VECTORS; ++v) {
      const int64_t at = key * BLOCK + v * LANES, lane = first + v * LANES;
      const vec p = exp2(load(s + at) - load(most + lane)) * load(share + lane);
      const vec slope = window.unless_hidden(p * (load(slopes + at) - load(balance + lane)), key, lane);
      store(s + at, p);
      store(slopes + at, slope);
      if (d_bias) {
        float* to = d_bias + bias.first(window.place[key]) + lane;
        store(to, load(to) + slope);
      }
    }
  }
}

}  // namespace

void volume_attention_backward(int64_t threads, const float* q, const float* k, const float* v, const float* bias,
                               const float* pad_k, const float* pad_v, const void* places, const void* geometry,
                               int64_t batch, int64_t heads, int64_t width, int64_t table, int64_t pad, float scale,
                               float seam, const float* y, const float* sums, const float* grad_y, float* d_q,
                               float* d_k, float* d_v, float* d_bias, float* d_pad_k, float* d_pad_v) {
  const WindowedCall call(q, k, v, bias, pad_k, pad_v, static_cast<const int64_t*>(places), static_cast<const int64_t*>(geometry),
                          batch, heads, width, table, pad, scale, seam);
  const HeadParts parts(call, threads);
  const bool halo = call.has_halo();
  const int64_t d_row = call.d_row, of_bias = bias ? call.bias_numbers() : 0, size = of_bias + 2 * d_row;
  const Scratch partial(parts.runs() * size);  // of what a part has of a head: gradients of the bias, of pad_k and pad_v

  parallel(parts.count, [&](int64_t part) {
    LaneWindow window(call);
    LaneBias added(call);
    const int64_t lanes = window.row, n_bias = bias ? added.size : 0;
    const Scratch across(call.width * lanes), g_across(call.width * lanes), q_rows(lanes * d_row), g_rows(lanes * d_row);
    const Scratch k_rows(call.keys * width), v_rows(call.keys * width), d_k_rows(call.keys * d_row), d_v_rows(call.keys * d_row);
    const Scratch scores(call.keys * BLOCK), slopes(call.keys * BLOCK), out(padded(width) * BLOCK), factor(BLOCK);
    const Scratch most(lanes), share(lanes), balance(lanes);
    const Scratch few(n_bias + 2 * d_row), total(n_bias + 2 * d_row);
    float *outside = few + n_bias, *d_added = bias ? static_cast<float*>(few) : nullptr;
    int64_t summed = 0;  // windows of the head
    for (int64_t lane = 0; lane < BLOCK; ++lane) factor[lane] = scale;

    const auto hand_over = [&] {
      add_to(total, few, n_bias + 2 * d_row);
      clear(few, n_bias + 2 * d_row);
    };
    parts.of(part, [&](int64_t head) { added.read(head); }, [&](int64_t head, int64_t image, const int64_t* at) {
      window.find(image, at);
      const int64_t n = window.keys();
      window.queries_across(q, call.of_q, head, scale * LOG2_E, across);                                 // [width, queries]
      window.queries_across(grad_y, call.of_y, head, 1.0f, g_across);
      window.query_rows(q, call.of_q, head, scale, q_rows);                                              // [queries, width]
      window.query_rows(grad_y, call.of_y, head, 1.0f, g_rows);
      window.key_rows(k, call.of_k, pad_k, head, k_rows);                                                // [keys, width]
      window.key_rows(v, call.of_v, pad_v, head, v_rows);
      window.read_numbers(sums, head, 0, FLT_MAX, most);
      window.read_numbers(sums, head, 1, 0.0f, share);
      window.balances(g_rows, y, head, balance);
      clear(d_k_rows, n * d_row);
      clear(d_v_rows, n * d_row);

      for (int64_t first = 0; first < lanes; first += BLOCK) {
        if (window.is_empty(first)) continue;
        product(n, BLOCK, width, {v_rows, width, 1}, {g_across + first, lanes}, slopes, BLOCK);          // [keys, BLOCK]
        softmax_backward(window, added, across, k_rows, first, most, share, balance, scores, slopes, d_added);

        product(width, BLOCK, n, {k_rows, 1, width}, {slopes, BLOCK}, out, BLOCK);                       // [width, BLOCK]
        add_product(n, width, BLOCK, {slopes, BLOCK, 1}, {q_rows + first * d_row, d_row}, d_k_rows, d_row);  // [keys, width]
        add_product(n, width, BLOCK, {scores, BLOCK, 1}, {g_rows + first * d_row, d_row}, d_v_rows, d_row);
        window.write_across(out, first, factor, d_q, call.of_q, head);
      }
      window.write_keys(d_k_rows, call.of_k, head, halo, d_k, outside);
      window.write_keys(d_v_rows, call.of_v, head, halo, d_v, outside + d_row);
      if (++summed % FEW == 0) hand_over();
    }, [&](int64_t head) {
      const bool is_few = summed < FEW;
      if (!is_few) hand_over();
      float *mine = is_few ? few : total, *run = partial + parts.run(part, head) * size;
      if (bias) added.hand_back(mine, run);
      std::memcpy(run + of_bias, mine + n_bias, 2 * d_row * sizeof(float));
      clear(mine, n_bias + 2 * d_row);
      summed = 0;
    });
  });

  parallel(threads, heads, [&](int64_t head) {
    float* found = nullptr;
    parts.of_head(head, [&](int64_t run) {
      if (found) add_to(found, partial + run * size, size);
      else found = partial + run * size;
    });
    const Scratch nothing(found ? 0 : size);  // of no image at all
    if (!found) found = nothing;
    if (d_bias) {
      const int64_t step = table ? heads : 1;
      float* to = d_bias + (table ? head : head * of_bias);
      for (int64_t number = 0; number < of_bias; ++number) to[number * step] = found[number];
    }
    copy_row(found + of_bias, width, d_pad_k, head * width);
    copy_row(found + of_bias + d_row, width, d_pad_v, head * width);
  });
}

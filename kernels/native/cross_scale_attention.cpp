// Windowed attention of one map to another, forward and backward; of volumes: volume_attention.cpp. In a window and head
//
//   S = scale q k^T + bias    P = softmax(S) over the keys that a query sees    y = P v
//   dP = g v^T    dS = P (dP - sum of P dP over the keys)
//   dq = scale dS k    dk = scale dS^T q    dv = P^T g    dbias = sum of dS over the windows
//
// A window's tokens are read where they stand in the maps and all results are written there; windows.h says where that
// is. Scores are in the cache alone, and made again in the backward.
//
// A halo's keys have gradients from several windows. Rows of windows that share no key are computed at the same time,
// those that do one after the other, so that every sum has one order. Sums over windows, of the bias and of the vectors
// outside the map: of a few windows first, then of a part, then of all parts in their order.
#include "native.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"
#include "windows.h"

namespace {

constexpr int64_t FEW = 32;  // windows whose sums are put together first

// Rows of the bias for every head and query, in whole vectors whose last lanes no query sees; a single row without one.
struct Bias {
  int64_t head_row, query_row;
  Scratch numbers;

  explicit Bias(const WindowedCall& call)
      : head_row(call.bias ? call.queries * call.n_row : 0), query_row(call.bias ? call.n_row : 0),
        numbers(call.bias ? call.heads * head_row : call.n_row) {
    const int64_t rows = call.bias ? call.heads * call.queries : 1;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t key = 0; key < call.n_row; ++key) {
        float& to = numbers[row * call.n_row + key];
        if (key >= call.keys) to = -INFINITY;
        else if (call.bias) to = call.bias[call.bias_at(row / call.queries, row % call.queries, key)];
      }
  }
  const float* row(int64_t head, int64_t query) const { return numbers + head * head_row + query * query_row; }
};

// What a part holds of a window and head. Last lanes of rows stay 0.
struct Memory {
  Scratch q, k, columns, v, g, scores, slopes, out, d_k, d_v;
  std::vector<float> share;  // 1 / the sum of a query's powers

  Memory(const WindowedCall& call, bool backward)
      : q(call.block() * call.d_row), k(backward ? call.keys * call.d_row : 0), columns(call.width * call.n_row),
        v(backward ? call.width * call.n_row : call.keys * call.d_row), g(backward ? call.block() * call.d_row : 0),
        scores(call.block() * call.n_row), slopes(backward ? call.block() * call.n_row : 0),
        out(call.block() * call.d_row), d_k(backward ? call.keys * call.d_row : 0),
        d_v(backward ? call.keys * call.d_row : 0), share(call.block()) {}
};

// Rows of queries [first, last) of a window, of q or of a gradient that lies as y does.
void query_rows(const Window& window, int64_t first, int64_t last, const float* from, const Tokens& of, int64_t head,
                float factor, float* to) {
  const Tail tail(of.width);
  for (int64_t i = first; i < last; ++i, to += window.call.d_row)
    read_row(from + of.at(window.queries[i].token, head), tail, factor, to);
}

// The row of a key or value; outside the map that of pad, or null for zeros.
const float* key_row(const Window& window, int64_t key, const float* from, const Tokens& of, const float* pad,
                     int64_t head) {
  const int64_t token = window.keys[key];
  if (token >= 0) return from + of.at(token, head);
  return pad ? pad + head * of.width : nullptr;
}

// Rows (keys, d_row).
void key_rows(const Window& window, const float* from, const Tokens& of, const float* pad, int64_t head, float* to) {
  const Tail tail(of.width);
  for (std::size_t key = 0; key < window.keys.size(); ++key, to += window.call.d_row) {
    const float* row = key_row(window, key, from, of, pad, head);
    if (row) read_row(row, tail, 1.0f, to);
    else clear(to, window.call.d_row);
  }
}

// The same as columns (width, n_row), LANES keys at a time; zeros behind the last key, to a whole vector.
void key_columns(const Window& window, const float* from, const Tokens& of, const float* pad, int64_t head, float* to) {
  const int64_t n = static_cast<int64_t>(window.keys.size()), row = window.call.n_row;
  for (int64_t first = 0; first < n; first += LANES, to += LANES) {
    const float* rows[LANES];
    for (int64_t lane = 0; lane < LANES; ++lane) {
      rows[lane] = first + lane < n ? key_row(window, first + lane, from, of, pad, head) : nullptr;
      if (!rows[lane]) rows[lane] = window.call.nothing;
    }
    for (int64_t c = 0; c < of.width; ++c)
      UNROLL for (int lane = 0; lane < LANES; ++lane) to[c * row + lane] = rows[lane][c];
  }
}

// Powers e^(S - largest) of queries [first, last) from their products with the keys, in their place; 1 / their sums. A
// query that sees no key gets zeros.
void softmax(const Window& window, const Masks& masks, const Bias& bias, int64_t head, int64_t first, int64_t last, float* s,
             float* share) {
  const int64_t n = padded(static_cast<int64_t>(window.keys.size()));
  for (int64_t i = first; i < last; ++i, s += window.call.n_row, ++share) {
    const Window::Query& query = window.queries[i];
    const float *added = bias.row(head, query.place), *mask = masks.row(query.code);
    if (masks.lonely[query.code]) {
      clear(s, n);
      *share = 0.0f;
      continue;
    }

    vec top = all(-INFINITY);
    for (int64_t j = 0; j < n; j += LANES) {
      vec score = load(s + j) + load(added + j);
      if (mask) score = load(mask + j) == -INFINITY ? all(-INFINITY) : score + load(mask + j);
      top = larger(top, score);
      store(s + j, score);
    }

    const vec most = all(max(top));
    vec total = zeros();
    for (int64_t j = 0; j < n; j += LANES) {
      const vec power = exp_below(load(s + j) - most);
      total += power;
      store(s + j, power);
    }
    *share = 1.0f / sum(total);
  }
}

// Windows of all images dealt to parts. With `apart` rows of windows, only every so many at a time, whole.
struct Parts {
  const WindowedCall& call;
  int64_t apart, parts;
  Parts(const WindowedCall& call, int64_t threads, bool whole_rows)
      : call(call), apart(whole_rows ? std::min(call.y.apart(), call.y.count) : 1),
        parts(std::max<int64_t>(1, std::min(threads, call.windows / (whole_rows ? apart * call.x.count : 1)))),
        whole_rows(whole_rows) {}

  // walk(image, row, column of a window) for what a part has of the rows of one turn.
  template <typename Walk>
  void of(int64_t part, int64_t turn, const Walk& walk) const {
    const int64_t rows = (call.y.count - turn + apart - 1) / apart, unit = whole_rows ? call.x.count : 1;
    const int64_t units = call.batch * rows * call.x.count / unit;
    for (int64_t at = units * part / parts * unit; at < units * (part + 1) / parts * unit; ++at) {
      const int64_t row = at / call.x.count;
      walk(row / rows, turn + row % rows * apart, at % call.x.count);
    }
  }

 private:
  bool whole_rows;
};

}  // namespace

void cross_scale_attention_forward(int64_t threads, const float* q, const float* k, const float* v, const float* bias,
                                   const float* pad_k, const float* pad_v, const void* places, const void* geometry,
                                   int64_t batch, int64_t heads, int64_t width, int64_t table, int64_t pad, float scale,
                                   float seam, float* y) {
  const WindowedCall call(q, k, v, bias, pad_k, pad_v, static_cast<const int64_t*>(places), static_cast<const int64_t*>(geometry),
                  batch, heads, width, table, pad, scale, seam);
  const Bias biases(call);
  const Parts parts(call, threads, false);

  parallel(parts.parts, [&](int64_t part) {
    Window window(call);
    Masks masks(window);
    Memory m(call, false);
    const Tail tail(width);

    parts.of(part, 0, [&](int64_t image, int64_t i, int64_t j) {
      window.find(image, 0, i, j);
      masks.find();
      const int64_t count = static_cast<int64_t>(window.queries.size());
      const int64_t keys = static_cast<int64_t>(window.keys.size());

      for (int64_t head = 0; head < heads; ++head) {
        key_columns(window, k, call.of_k, pad_k, head, m.columns);                                     // [width, keys]
        key_rows(window, v, call.of_v, pad_v, head, m.v);                                              // [keys, width]

        for (int64_t first = 0; first < count; first += call.block()) {
          const int64_t last = std::min(first + call.block(), count), some = last - first;
          query_rows(window, first, last, q, call.of_q, head, scale, m.q);                             // [some, width]

          product(some, keys, width, {m.q, call.d_row, 1}, {m.columns, call.n_row}, m.scores, call.n_row);
          softmax(window, masks, biases, head, first, last, m.scores, m.share.data());                        // [some, keys]
          product(some, width, keys, {m.scores, call.n_row, 1}, {m.v, call.d_row}, m.out, call.d_row);

          for (int64_t i = 0; i < some; ++i)
            write_row(m.out + i * call.d_row, tail, m.share[i], y + call.of_y.at(window.queries[first + i].token, head));
        }
      }
    });
  });
}

namespace {

// Probabilities in the place of powers, and the scores' gradients in the place of the probabilities', of `some` queries;
// added to those of the bias (queries, n_row), where it is wanted.
void softmax_backward(const Window& window, const Masks& masks, int64_t first, int64_t last, const float* share, float* s, float* slopes,
                      float* d_bias) {
  const int64_t row = window.call.n_row, n = padded(static_cast<int64_t>(window.keys.size()));
  for (int64_t i = first; i < last; ++i, s += row, slopes += row, ++share) {
    vec product = zeros();
    for (int64_t j = 0; j < n; j += LANES) {
      const vec p = load(s + j) * *share;
      product += p * load(slopes + j);
      store(s + j, p);
    }

    const float balance = sum(product);
    float* to = d_bias ? d_bias + window.queries[i].place * row : nullptr;
    const float* mask = masks.row(window.queries[i].code);
    for (int64_t j = 0; j < n; j += LANES) {
      vec slope = load(s + j) * (load(slopes + j) - balance);
      if (mask) slope = load(mask + j) == -INFINITY ? zeros() : slope;  // whatever a NaN has made of them
      store(slopes + j, slope);
      if (to) store(to + j, load(to + j) + slope);
    }
  }
}

// Gradients (keys, d_row) to where the keys stand, or to the sums of what lies outside. `add`: other windows see them too.
void write_keys(const Window& window, const float* rows, const Tokens& of, int64_t head, bool add, float* to,
                float* outside) {
  const Tail tail(of.width);
  for (std::size_t key = 0; key < window.keys.size(); ++key, rows += window.call.d_row) {
    const int64_t token = window.keys[key];
    if (token < 0) {
      add_to(outside, rows, window.call.d_row);
      continue;
    }
    float* here = to + of.at(token, head);
    if (add) add_to(here, rows, of.width);
    else write_row(rows, tail, 1.0f, here);
  }
}

}  // namespace

void cross_scale_attention_backward(int64_t threads, const float* q, const float* k, const float* v, const float* bias,
                                    const float* pad_k, const float* pad_v, const void* places, const void* geometry,
                                    int64_t batch, int64_t heads, int64_t width, int64_t table, int64_t pad, float scale,
                                    float seam, const float* grad_y, float* d_q, float* d_k, float* d_v, float* d_bias,
                                    float* d_pad_k, float* d_pad_v) {
  const WindowedCall call(q, k, v, bias, pad_k, pad_v, static_cast<const int64_t*>(places), static_cast<const int64_t*>(geometry),
                  batch, heads, width, table, pad, scale, seam);
  const Bias biases(call);
  const bool halo = call.has_halo();
  const Parts parts(call, threads, halo);
  const int64_t n_row = call.n_row, d_row = call.d_row;
  const int64_t of_bias = call.queries * n_row, all_bias = bias ? heads * of_bias : 0, size = all_bias + 2 * heads * d_row;
  // Of a part, and of its last few windows: dS [heads, queries, n_row], dk and dv outside [2, heads, d_row].
  const Scratch partial(parts.parts * size), few(parts.parts * size);

  const auto hand_over = [&](int64_t part) {
    add_to(partial + part * size, few + part * size, size);
    clear(few + part * size, size);
  };
  const auto walk = [&](int64_t turn) {
    parallel(parts.parts, [&](int64_t part) {
      float *sums = few + part * size, *outside = sums + all_bias;
      int64_t summed = 0;
      Window window(call);
      Masks masks(window);
      Memory m(call, true);
      const Tail tail(width);

      parts.of(part, turn, [&](int64_t image, int64_t i, int64_t j) {
        window.find(image, 0, i, j);
        masks.find();
        const int64_t count = static_cast<int64_t>(window.queries.size());
        const int64_t keys = static_cast<int64_t>(window.keys.size());

        for (int64_t head = 0; head < heads; ++head) {
          key_columns(window, k, call.of_k, pad_k, head, m.columns);                                   // [width, keys]
          key_rows(window, k, call.of_k, pad_k, head, m.k);                                            // [keys, width]
          key_columns(window, v, call.of_v, pad_v, head, m.v);                                         // [width, keys]
          clear(m.d_k, keys * d_row);
          clear(m.d_v, keys * d_row);

          for (int64_t first = 0; first < count; first += call.block()) {
            const int64_t last = std::min(first + call.block(), count), some = last - first;
            query_rows(window, first, last, q, call.of_q, head, scale, m.q);                           // [some, width]
            query_rows(window, first, last, grad_y, call.of_y, head, 1.0f, m.g);

            product(some, keys, width, {m.q, d_row, 1}, {m.columns, n_row}, m.scores, n_row);          // [some, keys]
            softmax(window, masks, biases, head, first, last, m.scores, m.share.data());
            product(some, keys, width, {m.g, d_row, 1}, {m.v, n_row}, m.slopes, n_row);
            softmax_backward(window, masks, first, last, m.share.data(), m.scores, m.slopes,
                             bias ? sums + head * of_bias : nullptr);

            product(some, width, keys, {m.slopes, n_row, 1}, {m.k, d_row}, m.out, d_row);              // [some, width]
            add_product(keys, width, some, {m.slopes, 1, n_row}, {m.q, d_row}, m.d_k, d_row);          // [keys, width]
            add_product(keys, width, some, {m.scores, 1, n_row}, {m.g, d_row}, m.d_v, d_row);

            for (int64_t i = 0; i < some; ++i)
              write_row(m.out + i * d_row, tail, scale, d_q + call.of_q.at(window.queries[first + i].token, head));
          }
          write_keys(window, m.d_k, call.of_k, head, halo, d_k, outside + head * d_row);
          write_keys(window, m.d_v, call.of_v, head, halo, d_v, outside + (heads + head) * d_row);
        }
        if (++summed % FEW == 0) hand_over(part);
      });
      hand_over(part);
    });
  };
  for (int64_t turn = 0; turn < parts.apart; ++turn) walk(turn);

  for (int64_t part = 1; part < parts.parts; ++part) add_to(partial, partial + part * size, size);
  if (d_bias) {
    clear(d_bias, heads * call.bias_numbers());
    for (int64_t row = 0; row < heads * call.queries; ++row)
      for (int64_t key = 0; key < call.keys; ++key)
        d_bias[call.bias_at(row / call.queries, row % call.queries, key)] += partial[row * n_row + key];
  }
  const float* outside = partial + all_bias;
  if (d_pad_k) copy_rows(outside, d_row, heads, width, d_pad_k, width);
  if (d_pad_v) copy_rows(outside + heads * d_row, d_row, heads, width, d_pad_v, width);
}

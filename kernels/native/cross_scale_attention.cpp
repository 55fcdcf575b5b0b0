// Windowed attention of one map to another, forward and backward. In a window and head
//
//   S = scale q k^T + bias    P = softmax(S) over the keys that a query sees    y = P v
//   dP = g v^T    dS = P (dP - sum of P dP over the keys)
//   dq = scale dS k    dk = scale dS^T q    dv = P^T g    dbias = sum of dS over the windows
//
// Row u of a rolled map is row u + shift, less the cycle where that is beyond it; window i of the query map is its rolled
// rows [i window, (i + 1) window), and its keys are rows [i core - halo, (i + 1) core + halo) of the rolled key map; so
// in x. A window's tokens are read where they stand in the maps and all results are written there: scores are in the
// cache alone, and made again in the backward. The code of a token, 2 * past the seam in y + past it in x, says who sees
// whom.
//
// A halo's keys have gradients from several windows. Rows of windows that share no key are computed at the same time,
// those that do one after the other, so that every sum has one order. Sums over windows, of the bias and of the vectors
// outside the map: of a part first, then of all parts in their order.
#include "native.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"

namespace {

constexpr int64_t CACHE = 16 * 1024;  // scores of a block of queries

struct Roll {
  int64_t size, cycle, shift, seam;

  // The map's row at row u of the rolled map; -1 where there is none.
  int64_t row(int64_t u) const {
    const int64_t at = u + shift >= cycle ? u + shift - cycle : u + shift;
    return u >= 0 && u < cycle && at < size ? at : -1;
  }
  bool past(int64_t u) const { return u >= seam; }
};

// As native.h lists them.
struct Axis {
  int64_t count, window, core, halo, p, q;
  Roll query, key;

  int64_t reach() const { return core + 2 * halo; }
  int64_t offsets() const { return (window - 1) * p + (reach() - 1) * q + 1; }
  int64_t first_key(int64_t index) const { return index * core - halo; }
  // The entry of a table for a query and a key of a window.
  int64_t offset(int64_t query_row, int64_t key_row) const { return p * query_row - q * key_row + (reach() - 1) * q; }
  // Rows of windows that lie so far apart share no key.
  int64_t apart() const { return (reach() + core - 1) / core; }
};

// A map, or the gradient of one: `first` and `pixel` say where a token's head begins.
struct Tokens {
  int64_t first, pixel, width;
  int64_t at(int64_t token, int64_t head) const { return first + token * pixel + head * width; }
};

struct Call {
  const float *q, *k, *v, *bias, *pad_k, *pad_v;
  Tokens of_q, of_k, of_v, of_y;
  int64_t batch, heads, width;
  Axis y, x;
  bool table, pad;
  float scale, seam;
  int64_t queries, keys, windows, n_row, d_row;
  Scratch nothing;  // [width], zeros

  Call(const float* q, const float* k, const float* v, const float* bias, const float* pad_k, const float* pad_v,
       const int64_t* places, const int64_t* geometry, int64_t batch, int64_t heads, int64_t width, bool table, bool pad,
       float scale, float seam)
      : q(q), k(k), v(v), bias(bias), pad_k(pad_k), pad_v(pad_v), of_q{places[0], places[1], width},
        of_k{places[2], places[3], width}, of_v{places[4], places[5], width}, of_y{0, heads * width, width}, batch(batch),
        heads(heads), width(width), table(table), pad(pad), scale(scale), seam(seam), nothing(width) {
    std::memcpy(&y, geometry, sizeof y);
    std::memcpy(&x, geometry + sizeof y / sizeof *geometry, sizeof x);
    queries = y.window * x.window, keys = y.reach() * x.reach(), windows = batch * y.count * x.count;
    n_row = padded(keys), d_row = padded(width);
  }

  int64_t block() const { return std::max<int64_t>(8, CACHE / n_row); }

  // Where the bias of a query and a key is.
  int64_t bias_at(int64_t head, int64_t query, int64_t key) const {
    if (!table) return (head * queries + query) * keys + key;
    const int64_t row = y.offset(query / x.window, key / x.reach()), column = x.offset(query % x.window, key % x.reach());
    return (row * x.offsets() + column) * heads + head;
  }
};

// Rows of the bias for every head and query, in whole vectors whose last lanes no query sees; a single row without one.
struct Bias {
  int64_t head_row, query_row;
  Scratch numbers;

  explicit Bias(const Call& call)
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

// The tokens of a window: queries that exist; keys up to the last that some query may see.
struct Window {
  struct Query {
    int64_t token, place, code;
  };
  const Call& call;
  std::vector<Query> queries;
  std::vector<int64_t> keys, codes;  // tokens, -1 outside the map
  bool masked;                       // whether not every query sees every key as it is
  Scratch masks;                     // [4, n_row], what is added to the scores of the queries of each code
  bool lonely[4];                    // whether those queries see no key at all

  explicit Window(const Call& call) : call(call), masks(4 * call.n_row) {}
  const float* mask(int64_t code) const { return masked ? masks + code * call.n_row : nullptr; }

  void find(int64_t image, int64_t i, int64_t j) {
    const Axis &y = call.y, &x = call.x;
    bool seen[4] = {}, hidden = false;
    queries.clear(), keys.clear(), codes.clear();
    for (int64_t a = 0; a < y.window; ++a) {
      for (int64_t b = 0; b < x.window; ++b) {
        const int64_t u = i * y.window + a, w = j * x.window + b, row = y.query.row(u), column = x.query.row(w);
        if (row < 0 || column < 0) continue;
        const int64_t code = 2 * y.query.past(u) + x.query.past(w);
        queries.push_back({(image * y.query.size + row) * x.query.size + column, a * x.window + b, code});
        seen[code] = true;
      }
    }

    std::size_t last = 0;
    for (int64_t a = 0; a < y.reach(); ++a) {
      for (int64_t b = 0; b < x.reach(); ++b) {
        const int64_t u = y.first_key(i) + a, w = x.first_key(j) + b, row = y.key.row(u), column = x.key.row(w);
        const bool inside = row >= 0 && column >= 0;
        keys.push_back(inside ? (image * y.key.size + row) * x.key.size + column : -1);
        codes.push_back(2 * y.key.past(u) + x.key.past(w));
        if (inside || call.pad) last = keys.size(), seen[codes.back()] = true;
        else hidden = true;
      }
    }
    keys.resize(last), codes.resize(last);
    masked = hidden || seen[0] + seen[1] + seen[2] + seen[3] > 1;
    for (int64_t code = 0; code < 4; ++code) mask_of(code);
  }

 private:
  void mask_of(int64_t code) {
    float* to = masks + code * call.n_row;
    const int64_t n = static_cast<int64_t>(keys.size());
    lonely[code] = true;
    for (int64_t key = 0; key < padded(n); ++key) {
      const bool seen = key < n && (keys[key] >= 0 || call.pad);
      to[key] = !seen ? -INFINITY : codes[key] == code ? 0.0f : call.seam;
      lonely[code] = lonely[code] && to[key] == -INFINITY;
    }
  }
};

// What a part holds of a window and head. Last lanes of rows stay 0.
struct Memory {
  Scratch q, k, columns, v, g, scores, slopes, out, d_k, d_v;
  std::vector<float> share;  // 1 / the sum of a query's powers

  Memory(const Call& call, bool backward)
      : q(call.block() * call.d_row), k(backward ? call.keys * call.d_row : 0), columns(call.width * call.n_row),
        v(backward ? call.width * call.n_row : call.keys * call.d_row), g(backward ? call.block() * call.d_row : 0),
        scores(call.block() * call.n_row), slopes(backward ? call.block() * call.n_row : 0),
        out(call.block() * call.d_row), d_k(backward ? call.keys * call.d_row : 0),
        d_v(backward ? call.keys * call.d_row : 0), share(call.block()) {}
};

// A row of `n` numbers times a factor.
INLINE void scale_row(const float* from, const Tail& tail, float factor, float* to) {
  for (int64_t c = 0; c < tail.whole; c += LANES) store(to + c, load(from + c) * factor);
  if (tail.rest) store(to + tail.whole, tail.load(from + tail.whole) * factor);
}

// Rows of queries [first, last) of a window, of q or of a gradient that lies as y does.
void query_rows(const Window& window, int64_t first, int64_t last, const float* from, const Tokens& of, int64_t head,
                float factor, float* to) {
  const Tail tail(of.width);
  for (int64_t i = first; i < last; ++i, to += window.call.d_row)
    scale_row(from + of.at(window.queries[i].token, head), tail, factor, to);
}

// The row of a key or value; outside the map that of pad, or null for zeros.
const float* key_row(const Window& window, int64_t key, const float* from, const Tokens& of, const float* pad, int64_t head) {
  const int64_t token = window.keys[key];
  if (token >= 0) return from + of.at(token, head);
  return pad ? pad + head * of.width : nullptr;
}

// Rows (keys, d_row).
void key_rows(const Window& window, const float* from, const Tokens& of, const float* pad, int64_t head, float* to) {
  const Tail tail(of.width);
  for (std::size_t key = 0; key < window.keys.size(); ++key, to += window.call.d_row) {
    const float* row = key_row(window, key, from, of, pad, head);
    if (row) scale_row(row, tail, 1.0f, to);
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
void softmax(const Window& window, const Bias& bias, int64_t head, int64_t first, int64_t last, float* s, float* share) {
  const int64_t n = padded(static_cast<int64_t>(window.keys.size()));
  for (int64_t i = first; i < last; ++i, s += window.call.n_row, ++share) {
    const Window::Query& query = window.queries[i];
    const float *added = bias.row(head, query.place), *mask = window.mask(query.code);
    if (window.lonely[query.code]) {
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
      const vec power = exp(load(s + j) - most);
      total += power;
      store(s + j, power);
    }
    *share = 1.0f / sum(total);
  }
}

// Windows of all images dealt to parts. With `apart` rows of windows, only every so many at a time, whole.
struct Parts {
  const Call& call;
  int64_t apart, parts;
  Parts(const Call& call, int64_t threads, bool whole_rows)
      : call(call), apart(whole_rows ? std::min(call.y.apart(), call.y.count) : 1),
        parts(std::max<int64_t>(1, std::min(threads, call.windows / (whole_rows ? apart * call.x.count : 1)))), whole_rows(whole_rows) {}

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
  const Call call(q, k, v, bias, pad_k, pad_v, static_cast<const int64_t*>(places), static_cast<const int64_t*>(geometry),
                  batch, heads, width, table, pad, scale, seam);
  const Bias biases(call);
  const Parts parts(call, threads, false);

  parallel(parts.parts, [&](int64_t part) {
    Window window(call);
    Memory m(call, false);
    const Tail tail(width);

    parts.of(part, 0, [&](int64_t image, int64_t i, int64_t j) {
      window.find(image, i, j);
      const int64_t count = static_cast<int64_t>(window.queries.size()), keys = static_cast<int64_t>(window.keys.size());

      for (int64_t head = 0; head < heads; ++head) {
        key_columns(window, k, call.of_k, pad_k, head, m.columns);                                     // [width, keys]
        key_rows(window, v, call.of_v, pad_v, head, m.v);                                              // [keys, width]

        for (int64_t first = 0; first < count; first += call.block()) {
          const int64_t last = std::min(first + call.block(), count), some = last - first;
          query_rows(window, first, last, q, call.of_q, head, scale, m.q);                             // [some, width]

          product(some, keys, width, {m.q, call.d_row, 1}, {m.columns, call.n_row}, m.scores, call.n_row);
          softmax(window, biases, head, first, last, m.scores, m.share.data());                        // [some, keys]
          product(some, width, keys, {m.scores, call.n_row, 1}, {m.v, call.d_row}, m.out, call.d_row);

          for (int64_t query = first; query < last; ++query) {
            const float *row = m.out + (query - first) * call.d_row, share = m.share[query - first];
            float* to = y + call.of_y.at(window.queries[query].token, head);
            for (int64_t c = 0; c < tail.whole; c += LANES) store(to + c, load(row + c) * share);
            if (tail.rest) tail.store(to + tail.whole, load(row + tail.whole) * share);
          }
        }
      }
    });
  });
}

namespace {

// Probabilities in the place of powers, and the scores' gradients in the place of the probabilities', of `some` queries;
// added to those of the bias (queries, n_row), where it is wanted.
void softmax_backward(const Window& window, int64_t first, int64_t last, const float* share, float* s, float* slopes, float* d_bias) {
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
    for (int64_t j = 0; j < n; j += LANES) {
      const vec slope = load(s + j) * (load(slopes + j) - balance);
      store(slopes + j, slope);
      if (to) store(to + j, load(to + j) + slope);
    }
  }
}

// Gradients (keys, d_row) to where the keys stand, or to the sums of what lies outside. `add`: other windows see them too.
void write_keys(const Window& window, const float* rows, const Tokens& of, int64_t head, bool add, float* to, float* outside) {
  const Tail tail(of.width);
  for (std::size_t key = 0; key < window.keys.size(); ++key, rows += window.call.d_row) {
    const int64_t token = window.keys[key];
    if (token < 0) {
      add_to(outside, rows, window.call.d_row);
      continue;
    }
    float* here = to + of.at(token, head);
    for (int64_t c = 0; c < tail.whole; c += LANES) store(here + c, add ? load(here + c) + load(rows + c) : load(rows + c));
    if (tail.rest) {
      const vec last = load(rows + tail.whole);
      tail.store(here + tail.whole, add ? tail.load(here + tail.whole) + last : last);
    }
  }
}

}  // namespace

void cross_scale_attention_backward(int64_t threads, const float* q, const float* k, const float* v, const float* bias,
                                    const float* pad_k, const float* pad_v, const void* places, const void* geometry,
                                    int64_t batch, int64_t heads, int64_t width, int64_t table, int64_t pad, float scale,
                                    float seam, const float* grad_y, float* d_q, float* d_k, float* d_v, float* d_bias,
                                    float* d_pad_k, float* d_pad_v) {
  const Call call(q, k, v, bias, pad_k, pad_v, static_cast<const int64_t*>(places), static_cast<const int64_t*>(geometry),
                  batch, heads, width, table, pad, scale, seam);
  const Bias biases(call);
  const bool halo = call.y.halo || call.x.halo;
  const Parts parts(call, threads, halo);
  const int64_t n_row = call.n_row, d_row = call.d_row;
  const int64_t of_bias = call.queries * n_row, all_bias = bias ? heads * of_bias : 0, size = all_bias + 2 * heads * d_row;
  const Scratch partial(parts.parts * size);  // of a part: dS [heads, queries, n_row], dk and dv outside [2, heads, d_row]

  const auto walk = [&](int64_t turn) {
    parallel(parts.parts, [&](int64_t part) {
      float *sums = partial + part * size, *outside = sums + all_bias;
      Window window(call);
      Memory m(call, true);
      const Tail tail(width);

      parts.of(part, turn, [&](int64_t image, int64_t i, int64_t j) {
        window.find(image, i, j);
        const int64_t count = static_cast<int64_t>(window.queries.size()), keys = static_cast<int64_t>(window.keys.size());

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
            softmax(window, biases, head, first, last, m.scores, m.share.data());
            product(some, keys, width, {m.g, d_row, 1}, {m.v, n_row}, m.slopes, n_row);
            softmax_backward(window, first, last, m.share.data(), m.scores, m.slopes, bias ? sums + head * of_bias : nullptr);

            product(some, width, keys, {m.slopes, n_row, 1}, {m.k, d_row}, m.out, d_row);              // [some, width]
            add_product(keys, width, some, {m.slopes, 1, n_row}, {m.q, d_row}, m.d_k, d_row);          // [keys, width]
            add_product(keys, width, some, {m.scores, 1, n_row}, {m.g, d_row}, m.d_v, d_row);

            for (int64_t query = first; query < last; ++query) {
              const float* row = m.out + (query - first) * d_row;
              float* to = d_q + call.of_q.at(window.queries[query].token, head);
              for (int64_t c = 0; c < tail.whole; c += LANES) store(to + c, load(row + c) * scale);
              if (tail.rest) tail.store(to + tail.whole, load(row + tail.whole) * scale);
            }
          }
          write_keys(window, m.d_k, call.of_k, head, halo, d_k, outside + head * d_row);
          write_keys(window, m.d_v, call.of_v, head, halo, d_v, outside + (heads + head) * d_row);
        }
      });
    });
  };
  for (int64_t turn = 0; turn < parts.apart; ++turn) walk(turn);

  for (int64_t part = 1; part < parts.parts; ++part) add_to(partial, partial + part * size, size);
  if (d_bias) {
    clear(d_bias, heads * (table ? call.y.offsets() * call.x.offsets() : call.queries * call.keys));
    for (int64_t row = 0; row < heads * call.queries; ++row)
      for (int64_t key = 0; key < call.keys; ++key)
        d_bias[call.bias_at(row / call.queries, row % call.queries, key)] += partial[row * n_row + key];
  }
  const float* outside = partial + all_bias;
  if (d_pad_k) copy_rows(outside, d_row, heads, width, d_pad_k, width);
  if (d_pad_v) copy_rows(outside + heads * d_row, d_row, heads, width, d_pad_v, width);
}

// Which queries meet which keys in windowed attention of one map to another.
//
// Row u of a rolled map is row u + shift, less the cycle where that is beyond it; window i of the query map is its rolled
// rows [i window, (i + 1) window), and its keys are rows [i core - halo, (i + 1) core + halo) of the rolled key map; so
// in x. The code of a token, 2 * past the seam in y + past it in x, says who sees whom: a query the keys of its own
// code, the others at the price of `seam`.
#pragma once

#include <vector>

#include "rows.h"

// Rows of the map, rolled rows, by how many they are rolled, and the rolled row from which on they lie past the seam.
struct Roll {
  int64_t size, cycle, shift, seam;

  // The map's row at row u of the rolled map; -1 where there is none.
  int64_t row(int64_t u) const {
    const int64_t at = u + shift >= cycle ? u + shift - cycle : u + shift;
    return u >= 0 && u < cycle && at < size ? at : -1;
  }
  bool past(int64_t u) const { return u >= seam; }
};

// Windows; queries and keys of one; keys on each side of those that it sees too; keys / queries in lowest terms. As
// native.h lists them.
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

// What a call takes; `width` is of a head.
struct WindowedCall {
  const float *q, *k, *v, *bias, *pad_k, *pad_v;
  Tokens of_q, of_k, of_v, of_y;
  int64_t batch, heads, width;
  Axis y, x;
  bool table, pad;
  float scale, seam;
  int64_t queries, keys, windows;  // of a window, halo included; of all images
  int64_t n_row, d_row;            // keys and width in whole vectors
  Scratch nothing;                 // [width], zeros

  WindowedCall(const float* q, const float* k, const float* v, const float* bias, const float* pad_k, const float* pad_v,
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

  // Queries whose scores stay in the cache.
  int64_t block() const { return std::max<int64_t>(8, 16 * 1024 / n_row); }

  // Where the bias of a query and a key is.
  int64_t bias_at(int64_t head, int64_t query, int64_t key) const {
    if (!table) return (head * queries + query) * keys + key;
    const int64_t row = y.offset(query / x.window, key / x.reach()), column = x.offset(query % x.window, key % x.reach());
    return (row * x.offsets() + column) * heads + head;
  }
};

// The tokens of a window: queries that exist; keys up to the last that some query may see.
struct Window {
  struct Query {
    int64_t token, place, code;
  };
  const WindowedCall& call;
  std::vector<Query> queries;
  std::vector<int64_t> keys, codes;  // tokens, -1 outside the map
  bool masked;                       // whether not every query sees every key as it is
  Scratch masks;                     // [4, n_row], what is added to the scores of the queries of each code
  bool lonely[4];                    // whether those queries see no key at all

  explicit Window(const WindowedCall& call) : call(call), masks(4 * call.n_row) {}
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
    for (int64_t code = 0; code < 4; ++code) {
      lonely[code] = false;
      if (masked) mask_of(code);
    }
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

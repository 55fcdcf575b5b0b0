// Which queries meet which keys in windowed attention of one map to another.
//
// Row u of a rolled map is row u + shift, less the cycle where that is beyond it; window i of the query map is its rolled
// rows [i window, (i + 1) window), and its keys are rows [i core - halo, (i + 1) core + halo) of the rolled key map; so
// on every axis. The code of a token, 4 * past the seam in z + 2 * past it in y + past it in x, says who sees whom: a
// query the keys of its own code, the others at the price of `seam`. A map of two axes has one row in z.
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
  Axis z, y, x;
  bool table, pad;
  float scale, seam;
  int64_t queries, keys, windows;  // of a window, halo included; of all images
  int64_t n_row, d_row;            // keys and width in whole vectors
  std::vector<int64_t> query_entry, key_entry;  // of a table: the entry of a query and a key is the sum of both
  Scratch nothing;                              // [width], zeros

  WindowedCall(const float* q, const float* k, const float* v, const float* bias, const float* pad_k, const float* pad_v,
       const int64_t* places, const int64_t* geometry, int64_t batch, int64_t heads, int64_t width, bool table, bool pad,
       float scale, float seam)
      : q(q), k(k), v(v), bias(bias), pad_k(pad_k), pad_v(pad_v), of_q{places[0], places[1], width},
        of_k{places[2], places[3], width}, of_v{places[4], places[5], width}, of_y{0, heads * width, width}, batch(batch),
        heads(heads), width(width), table(table), pad(pad), scale(scale), seam(seam), nothing(width) {
    for (Axis* axis : {&z, &y, &x}) {
      std::memcpy(axis, geometry, sizeof *axis);
      geometry += sizeof *axis / sizeof *geometry;
    }
    queries = z.window * y.window * x.window, keys = z.reach() * y.reach() * x.reach();
    windows = batch * z.count * y.count * x.count;
    n_row = padded(keys), d_row = padded(width);

    const auto entry = [&](int64_t in_z, int64_t in_y, int64_t in_x) {
      return (in_z * y.offsets() + in_y) * x.offsets() + in_x;
    };
    for (int64_t a = 0; a < z.window; ++a)
      for (int64_t b = 0; b < y.window; ++b)
        for (int64_t c = 0; c < x.window; ++c) query_entry.push_back(entry(z.p * a, y.p * b, x.p * c));
    for (int64_t a = 0; a < z.reach(); ++a)
      for (int64_t b = 0; b < y.reach(); ++b)
        for (int64_t c = 0; c < x.reach(); ++c) key_entry.push_back(entry(z.offset(0, a), y.offset(0, b), x.offset(0, c)));
  }

  // Queries whose scores stay in the cache.
  int64_t block() const { return std::max<int64_t>(8, 16 * 1024 / n_row); }

  bool has_halo() const { return z.halo || y.halo || x.halo; }
  int64_t entries() const { return z.offsets() * y.offsets() * x.offsets(); }
  int64_t bias_numbers() const { return table ? entries() : queries * keys; }  // of a head
  // Where the bias of a query and a key is.
  int64_t bias_at(int64_t head, int64_t query, int64_t key) const {
    if (!table) return (head * queries + query) * keys + key;
    return (query_entry[query] + key_entry[key]) * heads + head;
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

  explicit Window(const WindowedCall& call) : call(call) {}

  bool sees(int64_t key) const { return keys[key] >= 0 || call.pad; }

  void find(int64_t image, int64_t h, int64_t i, int64_t j) {
    const Axis &z = call.z, &y = call.y, &x = call.x;
    bool seen[8] = {}, hidden = false;
    queries.clear(), keys.clear(), codes.clear();

    int64_t place = 0;
    for (int64_t a = h * z.window; a < (h + 1) * z.window; ++a) {
      for (int64_t b = i * y.window; b < (i + 1) * y.window; ++b) {
        const int64_t slice = z.query.row(a), row = y.query.row(b), side = 4 * z.query.past(a) + 2 * y.query.past(b);
        for (int64_t c = j * x.window; c < (j + 1) * x.window; ++c, ++place) {
          const int64_t column = x.query.row(c), code = side + x.query.past(c);
          if (slice < 0 || row < 0 || column < 0) continue;
          queries.push_back({token(z.query, y.query, x.query, image, slice, row, column), place, code});
          seen[code] = true;
        }
      }
    }

    std::size_t last = 0;
    for (int64_t a = z.first_key(h); a < z.first_key(h) + z.reach(); ++a) {
      for (int64_t b = y.first_key(i); b < y.first_key(i) + y.reach(); ++b) {
        const int64_t slice = z.key.row(a), row = y.key.row(b), side = 4 * z.key.past(a) + 2 * y.key.past(b);
        for (int64_t c = x.first_key(j); c < x.first_key(j) + x.reach(); ++c) {
          const int64_t column = x.key.row(c), code = side + x.key.past(c);
          const bool inside = slice >= 0 && row >= 0 && column >= 0;
          keys.push_back(inside ? token(z.key, y.key, x.key, image, slice, row, column) : -1);
          codes.push_back(code);
          if (inside || call.pad) last = keys.size(), seen[code] = true;
          else hidden = true;
        }
      }
    }
    keys.resize(last), codes.resize(last);
    masked = hidden || std::count(seen, seen + 8, true) > 1;
  }

 private:
  static int64_t token(const Roll& z, const Roll& y, const Roll& x, int64_t image, int64_t slice, int64_t row,
                       int64_t column) {
    return ((image * z.size + slice) * y.size + row) * x.size + column;
  }
};

constexpr int64_t CODES = 4;  // of maps, which have no depth

// What is added to the scores of a window's queries of each code.
struct Masks {
  Scratch rows;        // [CODES, n_row]
  bool lonely[CODES];  // whether those queries see no key at all
  const Window& window;

  explicit Masks(const Window& window) : rows(CODES * window.call.n_row), window(window) {}
  const float* row(int64_t code) const { return window.masked ? rows + code * window.call.n_row : nullptr; }

  // Of the window as it was found.
  void find() {
    for (int64_t code = 0; code < CODES; ++code) {
      lonely[code] = false;
      if (window.masked) find(code);
    }
  }

 private:
  void find(int64_t code) {
    const int64_t n = static_cast<int64_t>(window.keys.size());
    float* to = rows + code * window.call.n_row;
    lonely[code] = true;
    for (int64_t key = 0; key < padded(n); ++key) {
      to[key] = key >= n || !window.sees(key) ? -INFINITY : window.codes[key] == code ? 0.0f : window.call.seam;
      lonely[code] = lonely[code] && to[key] == -INFINITY;
    }
  }
};

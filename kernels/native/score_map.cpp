// The score map, forward and backward. Nothing nonlinear sits between its two projections, so those of the coarse branch
// are one matrix for each of the four pixels (p1, p2) that a token fills. With n the maps as their batch norms give them
//
//   logits(2h + p1, 2w + p2) = F(p1, p2) ncoarse(h, w) + Wf nfine(2h + p1, 2w + p2)
//
//   dncoarse = sum over its pixels of F^T g          dnfine = Wf^T g
//   dF(p1, p2) = sum over tokens of g ncoarse^T      dWf = sum over pixels of g nfine^T
//
// A block of coarse tokens and the pixels that they fill pass through all products while they are in the cache: neither
// an upsampled nor a concatenated map is ever made. A batch norm n = z gamma + beta, z = (x - mean) rstd, is applied
// where a map is read (normed_map.h). The sums that its gradient needs are small sums of those for the weights, sum of
// g z^T and sum of g, which are then made in a pass of their own. Sums over pixels: of a block first, then of a part, then of all parts in their order.
#include "native.h"
#include "normed_map.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"

namespace {

constexpr int64_t BLOCK = 72;  // most coarse tokens of a block

// The pixels that some coarse tokens of a row fill: `pixels` in each of `rows` fine rows, at least one of each.
struct Block {
  int64_t coarse, tokens;     // first token of all images; tokens
  int64_t fine, rows, pixels; // first pixel of all images; an odd map ends with one row, and one pixel, less

  // Tokens that fill a pixel in column p2.
  int64_t with(int64_t p2) const { return (pixels + 1 - p2) / 2; }
};

// Coarse rows of all images dealt to parts.
struct Blocks {
  int64_t batch, height, width, coarse_height, coarse_width, rows, parts;

  Blocks(int64_t threads, int64_t batch, int64_t height, int64_t width)
      : batch(batch), height(height), width(width), coarse_height((height + 1) / 2), coarse_width((width + 1) / 2),
        rows(batch * coarse_height), parts(std::max<int64_t>(1, std::min(threads, rows))) {}

  int64_t widest() const { return std::min(BLOCK, coarse_width); }

  // walk(block) for what a part has.
  template <typename Walk>
  void of(int64_t part, const Walk& walk) const {
    const int64_t count = (coarse_width + BLOCK - 1) / BLOCK;
    for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row) {
      const int64_t image = row / coarse_height, y = 2 * (row % coarse_height);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t first = coarse_width * i / count, last = coarse_width * (i + 1) / count;
        walk(Block{row * coarse_width + first, last - first, (image * height + y) * width + 2 * first,
                   std::min<int64_t>(2, height - y), std::min(2 * last, width) - 2 * first});
      }
    }
  }
};

}  // namespace

void score_map_forward(int64_t threads, const float* coarse, const float* fine, int64_t batch, int64_t height,
                       int64_t width, int64_t channels, int64_t clusters, const float* folded, const float* fine_weight,
                       const float* coarse_norm, const float* fine_norm, float* logits) {
  const Blocks blocks(threads, batch, height, width);
  const Map coarse_map(coarse, blocks.rows * blocks.coarse_width, channels, coarse_norm);
  const Map fine_map(fine, batch * height * width, channels, fine_norm);
  const auto pack = [&](const float* weight) { return Packed(weight, channels, clusters, 1, channels); };  // (C, K)
  const auto corner = [&](int64_t i) { return pack(folded + i * clusters * channels); };
  const Packed up[4] = {corner(0), corner(1), corner(2), corner(3)}, direct = pack(fine_weight);
  const int64_t c_row = padded(channels), k_row = padded(clusters);

  parallel(blocks.parts, [&](int64_t part) {
    const int64_t widest = blocks.widest();
    const Scratch tokens(coarse_norm ? widest * c_row : 0), pixels(fine_norm ? 2 * widest * c_row : 0);
    const Scratch out(2 * widest * k_row);

    blocks.of(part, [&](const Block& block) {
      const Left from = coarse_map.read(block.coarse, block.tokens, true, tokens);  // [tokens, C]

      for (int64_t p1 = 0; p1 < block.rows; ++p1) {
        const int64_t first = block.fine + p1 * width;
        const Left beside = fine_map.read(first, block.pixels, true, pixels);       // [pixels, C]

        product(block.pixels, clusters, channels, beside, direct, out, k_row);      // [pixels, K]
        for (int64_t p2 = 0; p2 < 2; ++p2)
          add_product(block.with(p2), clusters, channels, from, up[2 * p1 + p2], out + p2 * k_row, 2 * k_row);

        copy_rows(out, k_row, block.pixels, clusters, logits + first * clusters, clusters);
      }
    });
  });
}

namespace {

// Sums of a part (or of all) over pixels, one behind the other: five matrices (C, K), of the four corners and of the
// fine map, and the gradients themselves of each corner.
struct Sums {
  int64_t k_row, matrix, size;
  Sums(int64_t channels, int64_t clusters)
      : k_row(padded(clusters)), matrix(channels * k_row), size(5 * matrix + 4 * k_row) {}

  float* corner(float* p, int64_t i) const { return p + i * matrix; }
  float* fine(float* p) const { return p + 4 * matrix; }
  float* gradients(float* p, int64_t i) const { return p + 5 * matrix + i * k_row; }
};

// From sums of g z^T (C, K) and of g: the weight's gradient (K, C), and what they add to dgamma and dbeta.
void finish(const float* sums, const float* gradients, const Map& map, const float* weight, int64_t clusters,
            int64_t k_row, float* d_weight, float* d_gamma, float* d_beta) {
  for (int64_t k = 0; k < clusters; ++k) {
    for (int64_t c = 0; c < map.channels; ++c) {
      const float sum = sums[c * k_row + k], w = weight[k * map.channels + c];
      d_weight[k * map.channels + c] = map.norm ? map.gamma[c] * sum + map.beta[c] * gradients[k] : sum;
      d_gamma[c] += w * sum;
      d_beta[c] += w * gradients[k];
    }
  }
}

}  // namespace

void score_map_backward(int64_t threads, const float* coarse, const float* fine, int64_t batch, int64_t height,
                        int64_t width, int64_t channels, int64_t clusters, const float* folded, const float* fine_weight,
                        const float* coarse_norm, const float* fine_norm, const float* grad_logits, float* d_coarse,
                        float* d_fine, float* d_folded, float* d_fine_weight, float* d_coarse_norm, float* d_fine_norm) {
  const Blocks blocks(threads, batch, height, width);
  const Map coarse_map(coarse, blocks.rows * blocks.coarse_width, channels, coarse_norm);
  const Map fine_map(fine, batch * height * width, channels, fine_norm);
  const auto pack = [&](const float* weight) { return Packed(weight, clusters, channels, channels, 1); };  // (K, C)
  const auto corner = [&](int64_t i) { return pack(folded + i * clusters * channels); };
  const Packed up[4] = {corner(0), corner(1), corner(2), corner(3)}, direct = pack(fine_weight);
  const int64_t c_row = padded(channels), k_row = padded(clusters), widest = blocks.widest();
  const bool norms = coarse_norm || fine_norm;
  const Sums at(channels, clusters);
  const Scratch partial(blocks.parts * at.size);
  const Scratch coarse_sums(2 * c_row), fine_sums(2 * c_row);  // dgamma, dbeta

  // The gradients of a row of pixels of a block.
  const auto read = [&](const Block& block, int64_t p1, float* g) {
    copy_rows(grad_logits + (block.fine + p1 * width) * clusters, clusters, block.pixels, clusters, g, k_row);
  };

  struct Memory {
    Scratch g, tokens, pixels, out, row;
    Memory(int64_t widest, int64_t c_row, int64_t k_row)
        : g(2 * widest * k_row), tokens(widest * c_row), pixels(2 * widest * c_row), out(2 * widest * c_row), row(k_row) {}
  };

  // Sums over a row of pixels.
  const auto add_sums = [&](const Block& block, int64_t p1, const Memory& m, float* sums) {
    const Left from = coarse_map.read(block.coarse, block.tokens, false, m.tokens);                // [tokens, C]
    const Left beside = fine_map.read(block.fine + p1 * width, block.pixels, false, m.pixels);     // [pixels, C]

    add_product(channels, clusters, block.pixels, {beside.p, 1, beside.row}, {m.g, k_row}, at.fine(sums), k_row);
    for (int64_t p2 = 0; p2 < 2; ++p2) {
      const int64_t i = 2 * p1 + p2;
      const float* g = m.g + p2 * k_row;
      add_product(channels, clusters, block.with(p2), {from.p, 1, from.row}, {g, 2 * k_row}, at.corner(sums, i), k_row);
      if (norms) add_rows(g, 2 * k_row, block.with(p2), k_row, m.row, at.gradients(sums, i));
    }
  };

  // dfine of a row of pixels; its part of dncoarse goes to `d_tokens`.
  const auto make_maps = [&](const Block& block, int64_t p1, const Memory& m, float* d_tokens) {
    product(block.pixels, channels, clusters, {m.g, k_row, 1}, direct, m.out, c_row);              // [pixels, C]
    fine_map.write(block.fine + p1 * width, block.pixels, m.out, fine_sums, fine_sums + c_row, d_fine);

    if (p1 == 0) clear(d_tokens, block.tokens * c_row);
    for (int64_t p2 = 0; p2 < 2; ++p2)
      add_product(block.with(p2), channels, clusters, {m.g + p2 * k_row, 2 * k_row, 1}, up[2 * p1 + p2], d_tokens,
                  c_row);
  };

  const auto walk = [&](bool sum, bool make) {
    parallel(blocks.parts, [&](int64_t part) {
      const Memory memory(widest, c_row, k_row);
      const Scratch d_tokens(widest * c_row);
      blocks.of(part, [&](const Block& block) {
        for (int64_t p1 = 0; p1 < block.rows; ++p1) {
          read(block, p1, memory.g);
          if (sum) add_sums(block, p1, memory, partial + part * at.size);
          if (make) make_maps(block, p1, memory, d_tokens);
        }
        if (make) coarse_map.write(block.coarse, block.tokens, d_tokens, coarse_sums, coarse_sums + c_row, d_coarse);
      });
    });
  };

  walk(true, !norms);
  for (int64_t part = 1; part < blocks.parts; ++part) add_to(partial, partial + part * at.size, at.size);
  const Scratch of_all(k_row);
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t matrix = i * clusters * channels;
    finish(at.corner(partial, i), at.gradients(partial, i), coarse_map, folded + matrix, clusters, k_row,
           d_folded + matrix, coarse_sums, coarse_sums + c_row);
    add_to(of_all, at.gradients(partial, i), k_row);
  }
  finish(at.fine(partial), of_all, fine_map, fine_weight, clusters, k_row, d_fine_weight, fine_sums, fine_sums + c_row);
  if (!norms) return;

  coarse_map.hand_out(coarse_sums, d_coarse_norm);
  fine_map.hand_out(fine_sums, d_fine_norm);
  walk(false, true);
}

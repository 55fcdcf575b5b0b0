// Every function of the library. `library.py` reads the names and kinds of arguments from here, so this is their only
// statement: one function a line or several, arguments by name, of the kinds
//   const float*, float*    float32, contiguous          const void*, void*    labels of `label_bytes` each, int32, int64
//   int64_t*                int64, contiguous
//   int64_t                 sizes, flags                 float                 numbers
// Pointers may be null where a comment says so.
#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

// The entry of PyTorch's OpenMP library; null: threads of our own.
void use_parallel(void* parallel);

// Products on the matrix unit, of operands in `parts` parts (tiles.h), from now on; 0: of vectors. used: what became of
// it, 0 where the processor or the system has none.
void use_tiles(int64_t parts, int64_t* used);

// Mean and biased variance (channels) of x (rows, channels).
void batch_statistics(int64_t threads, const float* x, int64_t rows, int64_t channels, float* mean, float* var);

// y (batch, ceil(height / stride), ceil(width / stride), channels) of image (batch, height, width, in_channels), and its
// channels' mean and variance. weight (3, 3, in_channels, channels); bias may be null.
void overlap_embedding_forward(int64_t threads, const float* image, int64_t batch, int64_t height, int64_t width,
                               int64_t in_channels, int64_t stride, int64_t channels, const float* weight,
                               const float* bias, float* y, float* mean, float* var);

// Gradients of weight, which lies the same way, and of bias, which may be null.
void overlap_embedding_backward(int64_t threads, const float* image, int64_t batch, int64_t height, int64_t width,
                                int64_t in_channels, int64_t stride, int64_t channels, const float* grad_y,
                                float* d_weight, float* d_bias);

// y of t (batch, height, width, channels); weights as the op's; biases and norms' weights may be null.
void mix_ffn_forward(int64_t threads, const float* t, int64_t batch, int64_t height, int64_t width, int64_t channels,
                     int64_t hidden, const float* fc1_weight, const float* fc1_bias, const float* depthwise_weight,
                     const float* depthwise_bias, const float* fc2_weight, const float* fc2_bias,
                     const float* norm_weight, const float* norm_bias, const float* inner_norm_weight,
                     const float* inner_norm_bias, int64_t norm, int64_t inner_norm, int64_t inner_skip,
                     int64_t residual, float eps, float* y);

// Gradients of t and of every parameter; those of parameters may be null.
void mix_ffn_backward(int64_t threads, const float* t, int64_t batch, int64_t height, int64_t width, int64_t channels,
                      int64_t hidden, const float* fc1_weight, const float* fc1_bias, const float* depthwise_weight,
                      const float* depthwise_bias, const float* fc2_weight, const float* fc2_bias,
                      const float* norm_weight, const float* norm_bias, const float* inner_norm_weight,
                      const float* inner_norm_bias, int64_t norm, int64_t inner_norm, int64_t inner_skip,
                      int64_t residual, float eps, const float* grad_y, float* d_t, float* d_fc1_weight,
                      float* d_fc1_bias, float* d_depthwise_weight, float* d_depthwise_bias, float* d_fc2_weight,
                      float* d_fc2_bias, float* d_norm_weight, float* d_norm_bias, float* d_inner_norm_weight,
                      float* d_inner_norm_bias);

// Of x (batch, tokens, channels): log_sum (batch, keys), gathered (batch, keys, channels). batch_norm: null, or (4,
// channels) as the score map's.
void efficient_attention_gather(int64_t threads, const float* x, int64_t batch, int64_t tokens, int64_t channels,
                                int64_t keys, const float* key_weight, const float* norm_weight,
                                const float* norm_bias, const float* batch_norm, int64_t norm, float eps,
                                float* log_sum, float* gathered);

// y (batch, tokens, channels) of x and folded (batch, keys, channels).
void efficient_attention_attend(int64_t threads, const float* x, int64_t batch, int64_t tokens, int64_t channels,
                                int64_t keys, int64_t heads, const float* query_weight, const float* query_bias,
                                const float* reprojection_bias, const float* norm_weight, const float* norm_bias,
                                const float* batch_norm, int64_t norm, int64_t residual, float eps, const float* folded,
                                float* y);

// Gradients through the queries: d_n (batch, tokens, channels) of the normed tokens, d_folded (batch, keys, channels),
// and those of weights.
void efficient_attention_queries_backward(int64_t threads, const float* x, int64_t batch, int64_t tokens,
                                          int64_t channels, int64_t keys, int64_t heads, const float* query_weight,
                                          const float* query_bias, const float* norm_weight, const float* norm_bias,
                                          const float* batch_norm, int64_t norm, float eps, const float* folded,
                                          const float* grad_y, float* d_n, float* d_folded, float* d_query_weight,
                                          float* d_query_bias, float* d_reprojection_bias);

// Gradients through the keys, from d_gathered (batch, keys, channels) and balance (batch, keys), the sums of gathered
// times d_gathered; then of x, in the place of d_n. grad_y is null without a residual.
void efficient_attention_keys_backward(int64_t threads, const float* x, int64_t batch, int64_t tokens, int64_t channels,
                                       int64_t keys, const float* key_weight, const float* norm_weight,
                                       const float* norm_bias, const float* batch_norm, int64_t norm, float eps,
                                       const float* log_sum, const float* gathered, const float* d_gathered,
                                       const float* balance, const float* grad_y, float* d_x, float* d_key_weight,
                                       float* d_norm_weight, float* d_norm_bias, float* d_batch_norm);

// logits (batch, height, width, clusters) of coarse (batch, ceil(height / 2), ceil(width / 2), channels) and fine (batch,
// height, width, channels). folded (4, clusters, channels): weights from a token to its pixels (p1, p2); fine_weight
// (clusters, channels). coarse_norm, fine_norm: null, or (4, channels): mean, 1 / standard deviation, weight, bias.
void score_map_forward(int64_t threads, const float* coarse, const float* fine, int64_t batch, int64_t height,
                       int64_t width, int64_t channels, int64_t clusters, const float* folded, const float* fine_weight,
                       const float* coarse_norm, const float* fine_norm, float* logits);

// Gradients of both maps and of both weights; d_coarse_norm, d_fine_norm (2, channels): of a batch norm's weight and
// bias, null without one.
void score_map_backward(int64_t threads, const float* coarse, const float* fine, int64_t batch, int64_t height,
                        int64_t width, int64_t channels, int64_t clusters, const float* folded, const float* fine_weight,
                        const float* coarse_norm, const float* fine_norm, const float* grad_logits, float* d_coarse,
                        float* d_fine, float* d_folded, float* d_fine_weight, float* d_coarse_norm, float* d_fine_norm);

// y (batch, height, width, heads, width) of maps whose tokens' heads lie one behind the other. int64 numbers: places
// (3, 2), of q, k and v where the first token lies and how far the next; geometry (3, 14), of each axis windows, queries
// and keys of one, halo, keys / queries in lowest terms, then of the queries' and of the keys' roll rows of the map,
// rolled rows, shift, and the rolled row from which on they lie past the seam. bias: null, (heads, queries, keys), or with
// `table` (entries, heads). pad: positions outside the map are keys, of pad_k and pad_v (heads, width), null for zeros.
void cross_scale_attention_forward(int64_t threads, const float* q, const float* k, const float* v, const float* bias,
                                   const float* pad_k, const float* pad_v, const void* places, const void* geometry,
                                   int64_t batch, int64_t heads, int64_t width, int64_t table, int64_t pad, float scale,
                                   float seam, float* y);

// Gradients, those of maps as the maps lie; with a halo those of keys and values are added to zeros. d_bias, d_pad_k and
// d_pad_v may be null.
void cross_scale_attention_backward(int64_t threads, const float* q, const float* k, const float* v, const float* bias,
                                    const float* pad_k, const float* pad_v, const void* places, const void* geometry,
                                    int64_t batch, int64_t heads, int64_t width, int64_t table, int64_t pad, float scale,
                                    float seam, const float* grad_y, float* d_q, float* d_k, float* d_v, float* d_bias,
                                    float* d_pad_k, float* d_pad_v);

// The same for volumes: y (batch, depth, height, width, heads, width), sums (2, batch, heads, depth, height, width), each
// query's largest score and 1 / the sum of its powers of 2.
void volume_attention_forward(int64_t threads, const float* q, const float* k, const float* v, const float* bias,
                              const float* pad_k, const float* pad_v, const void* places, const void* geometry,
                              int64_t batch, int64_t heads, int64_t width, int64_t table, int64_t pad, float scale,
                              float seam, float* y, float* sums);

// Of y and sums as the forward made them.
void volume_attention_backward(int64_t threads, const float* q, const float* k, const float* v, const float* bias,
                               const float* pad_k, const float* pad_v, const void* places, const void* geometry,
                               int64_t batch, int64_t heads, int64_t width, int64_t table, int64_t pad, float scale,
                               float seam, const float* y, const float* sums, const float* grad_y, float* d_q,
                               float* d_k, float* d_v, float* d_bias, float* d_pad_k, float* d_pad_v);

// Of logits (batch, height, width, clusters) with these strides, that of columns or that of clusters 1: labels (batch,
// height, width), counts (batch), and the loss: of every pixel, or with null for `losses` its sum or mean.
void clustering_loss_forward(int64_t threads, const float* logits, int64_t batch, int64_t height, int64_t width,
                             int64_t clusters, int64_t image_stride, int64_t row_stride, int64_t column_stride,
                             int64_t cluster_stride, int64_t mean, float* losses, float* loss, void* labels,
                             int64_t label_bytes, void* label_count);

// Gradient of the logits, with strides of its own, from that of the losses: `grad` of every pixel, or one number.
void clustering_loss_backward(int64_t threads, const float* logits, int64_t batch, int64_t height, int64_t width,
                              int64_t clusters, int64_t image_stride, int64_t row_stride, int64_t column_stride,
                              int64_t cluster_stride, const void* labels, int64_t label_bytes, const float* grad,
                              int64_t per_pixel, float divisor, float* d_logits, int64_t d_image_stride,
                              int64_t d_row_stride, int64_t d_column_stride, int64_t d_cluster_stride);

// clustering_loss of features (batch, pixels, channels) times weight (clusters, channels) plus bias, which may be null.
void linear_clustering_loss_forward(int64_t threads, const float* features, int64_t batch, int64_t pixels,
                                    int64_t channels, int64_t clusters, const float* weight, const float* bias,
                                    int64_t mean, float* losses, float* loss, void* labels, int64_t label_bytes,
                                    void* label_count);

// Gradients of features, weight and bias (null without one), from that of the losses.
void linear_clustering_loss_backward(int64_t threads, const float* features, int64_t batch, int64_t pixels,
                                     int64_t channels, int64_t clusters, const float* weight, const float* bias,
                                     const void* labels, int64_t label_bytes, const float* grad, int64_t per_pixel,
                                     float divisor, float* d_features, float* d_weight, float* d_bias);

// Of queries and keys (batch, patches, channels): the loss, and its gradients divided by 2 / (scale batch patches^2);
// null for both where no gradient is wanted.
void stability_loss(int64_t threads, const float* queries, const float* keys, int64_t batch, int64_t patches,
                    int64_t channels, float scale, float* loss, float* d_queries, float* d_keys);

// Of logits (batch, height, width, clusters), clusters neighbours, with these strides: embedded (2, batch, patches,
// channels), queries and then keys. mean, rstd, gamma, beta (clusters); bias may be null.
void patch_embedding_forward(int64_t threads, const float* logits, int64_t batch, int64_t height, int64_t width,
                             int64_t clusters, int64_t image_stride, int64_t row_stride, int64_t column_stride,
                             const float* mean, const float* rstd, const float* gamma, const float* beta,
                             const float* weight, const float* bias, int64_t channels, int64_t patch, float* embedded);

// Gradients of the logits, with strides of their own, and of weight, bias, gamma and beta, from `grad` of the embedded;
// batch_stats: mean and rstd are those of these logits.
void patch_embedding_backward(int64_t threads, const float* logits, int64_t batch, int64_t height, int64_t width,
                              int64_t clusters, int64_t image_stride, int64_t row_stride, int64_t column_stride,
                              const float* mean, const float* rstd, const float* gamma, const float* beta,
                              const float* weight, int64_t channels, int64_t patch, int64_t batch_stats,
                              const float* grad, float* d_logits, int64_t d_image_stride, int64_t d_row_stride,
                              int64_t d_column_stride, float* d_weight, float* d_bias, float* d_gamma, float* d_beta);
}
#pragma GCC visibility pop

// SPDX-License-Identifier: MIT
// The kernels as plain structs of pointers and sizes, and the table of functions that each instruction set fills.
//
// Nothing here knows of Python or torch. Pointers are to dense row-major memory of the dtype named beside them; strides are
// in elements. Kernels check nothing: shapes and bounds are the caller's (tokenspeed/kernels/cpu).
#pragma once

#include <cstdint>

namespace tokenspeed::cpu {

enum class Dtype : int { f32 = 0, bf16 = 1 };
enum class Format : int { native = 0, int8 = 1 };

// y[t, h, :] = x[t, h, :] W[h]^T + bias; linear.dense is the case of one head.
struct Linear {
  const void* x;
  std::int64_t tokens, heads, inputs, x_stride, x_head_stride;  // from token to token, from head to head
  const void* weight;                            // packed, `panel_words` says how large
  std::int64_t outputs;
  const void* bias;  // [heads * outputs] or null
  void* y;           // [tokens, heads, outputs]
  Dtype dtype, out_dtype;
  Format format;
};

// Packs W[h] of [matrices, outputs, inputs]; element (h, o, i) lies at h * matrix_stride + o * inputs + i.
struct Pack {
  const void* weight;
  std::int64_t matrices, outputs, inputs;
  void* to;
  Dtype dtype;
  Format format;
};

struct Norm {
  const void* x;
  std::int64_t tokens, width, x_stride;
  void* residual;  // [tokens, width], added to x and replaced by the sum; null for a plain norm
  const void* weight;
  void* y;
  float eps;
  Dtype dtype;
};

struct SiluMul {
  const void* x;  // [tokens, 2 width]: gate, then up
  std::int64_t tokens, width, x_stride;
  void* y;
  Dtype dtype;
};

struct Embedding {
  const std::int64_t* ids;
  std::int64_t tokens, width, vocabulary;
  const void* table;
  void* y;
  Dtype dtype;
};

struct RopeGqa {
  const void *q, *k, *v;
  std::int64_t tokens, heads, kv_heads, head_dim, q_stride, k_stride, v_stride;
  const float* cos_sin;  // [positions, rotary]: cosines of the rotary / 2 pairs, then sines
  std::int64_t rotary;
  const std::int64_t *positions, *write_index;
  void *k_arena, *v_arena;            // [tokens of the arena, kv_heads, head_dim]
  const void *q_norm, *k_norm;        // [head_dim] or null
  float eps;
  void* q_out;  // [tokens, heads, head_dim], may be q
  std::int64_t out_stride;
  bool interleaved;
  Dtype dtype;
};

struct RopeMla {
  const void *q_rope, *latent, *k_rope;
  std::int64_t tokens, heads, latent_dim, rope_dim, q_token_stride, q_head_stride, latent_stride, k_stride;
  const void* norm;
  float eps;
  const float* cos_sin;
  const std::int64_t *positions, *write_index;
  void* arena;  // [tokens of the arena, latent_dim + rope_dim]
  void* q_out;  // [tokens, heads, rope_dim], may be q_rope
  std::int64_t out_token_stride, out_head_stride;
  bool interleaved;
  Dtype dtype;
};

// Where the tokens of a row lie. Block b of a row holds its tokens [b P, (b + 1) P).
struct Paged {
  const std::int32_t* block_table;  // [rows, table_stride]
  std::int64_t table_stride, block_tokens, rows;
  const std::int32_t* context;  // [rows] tokens in KV, those of this step included
};

struct GqaAttention {
  const void* q;
  std::int64_t heads, kv_heads, head_dim, q_stride;  // q_stride: from token to token
  const void *k_arena, *v_arena;
  Paged paged;
  const std::int32_t* row_starts;  // [rows + 1], null for decode (one token a row)
  float scale;
  void* y;  // [tokens, heads, head_dim]
  Dtype dtype;
};

struct MlaDecode {
  const void *q_latent, *q_rope;
  std::int64_t heads, latent_dim, rope_dim, latent_token_stride, latent_head_stride, rope_token_stride, rope_head_stride;
  const void* arena;
  Paged paged;
  float scale;
  void* y;  // [rows, heads, latent_dim]
  Dtype dtype;
};

struct MlaExtend {
  const void* q;  // [tokens, heads, nope_dim + rope_dim]
  std::int64_t heads, latent_dim, rope_dim, nope_dim, value_dim, q_stride;
  const void* arena;
  const void *w_uk, *w_uv;  // packed panels: w_uk [heads][nope_dim, latent_dim], w_uv [heads][value_dim, latent_dim]
  Paged paged;
  const std::int32_t* row_starts;
  float scale;
  void* y;  // [tokens, heads, value_dim]
  Dtype dtype;
};

struct Route {
  const float* logits;  // [tokens, experts]
  const float* bias;    // [experts] or null
  std::int64_t tokens, experts, top_k, groups, groups_top;
  bool sigmoid, group_top2_sum, normalise;
  float scale;
  std::int32_t* ids;  // [tokens, top_k]
  float* weights;
};

struct Experts {
  const void* x;
  std::int64_t tokens, width, ffn, experts, top_k, x_stride;
  const std::int32_t* ids;  // [tokens, top_k]; an id outside [0, experts) is skipped
  const float* weights;
  const void *w13, *w2;  // packed: w13 [experts][2 ffn, width], w2 [experts][width, ffn]
  void* y;
  Dtype dtype;
  Format format;
};

// Reads a buffer once and does nothing with it: the ceiling that memory-bound kernels are measured against.
struct Stream {
  const void* data;
  std::int64_t bytes;  // a multiple of 64
};

struct Kernels {
  const char* isa;
  std::int64_t (*packed_bytes)(const Pack&);
  void (*pack)(const Pack&);
  void (*linear)(const Linear&);
  void (*norm)(const Norm&);
  void (*silu_mul)(const SiluMul&);
  void (*embedding)(const Embedding&);
  void (*rope_gqa)(const RopeGqa&);
  void (*rope_mla)(const RopeMla&);
  void (*gqa)(const GqaAttention&);
  void (*mla_decode)(const MlaDecode&);
  void (*mla_extend)(const MlaExtend&);
  void (*route)(const Route&);
  void (*experts)(const Experts&);
  void (*stream)(const Stream&);
};

}  // namespace tokenspeed::cpu

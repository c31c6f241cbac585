// SPDX-License-Identifier: MIT
// The extension `_cpu`: each kernel as a function of addresses, sizes and strides, in the order of its struct in kernels.h.
//
// Addresses are plain integers, so nothing here depends on torch's ABI. Nothing is checked: tokenspeed/kernels/cpu does.
// The GIL is released while a kernel runs; one kernel runs at a time.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "dispatch.h"
#include "pool.h"

namespace nb = nanobind;

namespace tokenspeed::cpu {
namespace {

using i64 = std::int64_t;
using Address = std::uintptr_t;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class Args>
void run(void (*Kernels::*kernel)(const Args&), const Args& args) {
  nb::gil_scoped_release released;
  Busy busy;
  (active().*kernel)(args);
}

Paged paged(Address table, i64 stride, i64 block_tokens, i64 rows, Address context) {
  return {at<const std::int32_t>(table), stride, block_tokens, rows, at<const std::int32_t>(context)};
}

void linear(Address x, i64 tokens, i64 heads, i64 inputs, i64 x_stride, i64 x_head_stride, Address weight, i64 outputs,
            Address bias, Address y, int dtype, int out_dtype, int format) {
  run(&Kernels::linear, Linear{at(x), tokens, heads, inputs, x_stride, x_head_stride, at(weight), outputs, at(bias), at(y),
                               Dtype(dtype), Dtype(out_dtype), Format(format)});
}

i64 packed_bytes(i64 matrices, i64 outputs, i64 inputs, int dtype, int format) {
  return active().packed_bytes(Pack{nullptr, matrices, outputs, inputs, nullptr, Dtype(dtype), Format(format)});
}

void pack(Address weight, i64 matrices, i64 outputs, i64 inputs, Address to, int dtype, int format) {
  run(&Kernels::pack, Pack{at(weight), matrices, outputs, inputs, at(to), Dtype(dtype), Format(format)});
}

void norm(Address x, i64 tokens, i64 width, i64 x_stride, Address residual, Address weight, Address y, float eps, int dtype) {
  run(&Kernels::norm, Norm{at(x), tokens, width, x_stride, at(residual), at(weight), at(y), eps, Dtype(dtype)});
}

void silu_mul(Address x, i64 tokens, i64 width, i64 x_stride, Address y, int dtype) {
  run(&Kernels::silu_mul, SiluMul{at(x), tokens, width, x_stride, at(y), Dtype(dtype)});
}

void embedding(Address ids, i64 tokens, i64 width, i64 vocabulary, Address table, Address y, int dtype) {
  run(&Kernels::embedding, Embedding{at<const i64>(ids), tokens, width, vocabulary, at(table), at(y), Dtype(dtype)});
}

void rope_gqa(Address q, Address k, Address v, i64 tokens, i64 heads, i64 kv_heads, i64 head_dim, i64 q_stride, i64 k_stride,
              i64 v_stride, Address cos_sin, i64 rotary, Address positions, Address write_index, Address k_arena,
              Address v_arena, Address q_norm, Address k_norm, float eps, Address q_out, i64 out_stride,
              bool interleaved, int dtype) {
  run(&Kernels::rope_gqa,
      RopeGqa{at(q), at(k), at(v), tokens, heads, kv_heads, head_dim, q_stride, k_stride, v_stride, at<const float>(cos_sin),
              rotary, at<const i64>(positions), at<const i64>(write_index), at(k_arena), at(v_arena), at(q_norm), at(k_norm),
              eps, at(q_out), out_stride, interleaved, Dtype(dtype)});
}

void rope_mla(Address q_rope, Address latent, Address k_rope, i64 tokens, i64 heads, i64 latent_dim, i64 rope_dim,
              i64 q_token_stride, i64 q_head_stride, i64 latent_stride, i64 k_stride, Address norm_weight, float eps,
              Address cos_sin, Address positions, Address write_index, Address arena, Address q_out,
              i64 out_token_stride, i64 out_head_stride, bool interleaved, int dtype) {
  run(&Kernels::rope_mla,
      RopeMla{at(q_rope), at(latent), at(k_rope), tokens, heads, latent_dim, rope_dim, q_token_stride, q_head_stride,
              latent_stride, k_stride, at(norm_weight), eps, at<const float>(cos_sin), at<const i64>(positions),
              at<const i64>(write_index), at(arena), at(q_out), out_token_stride,
              out_head_stride, interleaved, Dtype(dtype)});
}

void gqa(Address q, i64 heads, i64 kv_heads, i64 head_dim, i64 q_stride, Address k_arena, Address v_arena, Address table,
         i64 table_stride, i64 block_tokens, i64 rows, Address context, Address row_starts, float scale, Address y, int dtype) {
  run(&Kernels::gqa, GqaAttention{at(q), heads, kv_heads, head_dim, q_stride, at(k_arena), at(v_arena),
                                  paged(table, table_stride, block_tokens, rows, context),
                                  at<const std::int32_t>(row_starts), scale, at(y), Dtype(dtype)});
}

void mla_decode(Address q_latent, Address q_rope, i64 heads, i64 latent_dim, i64 rope_dim, i64 latent_token_stride,
                i64 latent_head_stride, i64 rope_token_stride, i64 rope_head_stride, Address arena, Address table,
                i64 table_stride, i64 block_tokens, i64 rows, Address context, float scale, Address y, int dtype) {
  run(&Kernels::mla_decode,
      MlaDecode{at(q_latent), at(q_rope), heads, latent_dim, rope_dim, latent_token_stride, latent_head_stride,
                rope_token_stride, rope_head_stride, at(arena), paged(table, table_stride, block_tokens, rows, context), scale,
                at(y), Dtype(dtype)});
}

void mla_extend(Address q, i64 heads, i64 latent_dim, i64 rope_dim, i64 nope_dim, i64 value_dim, i64 q_stride, Address arena,
                Address w_uk, Address w_uv, Address table, i64 table_stride, i64 block_tokens, i64 rows, Address context,
                Address row_starts, float scale, Address y, int dtype) {
  run(&Kernels::mla_extend,
      MlaExtend{at(q), heads, latent_dim, rope_dim, nope_dim, value_dim, q_stride, at(arena), at(w_uk), at(w_uv),
                paged(table, table_stride, block_tokens, rows, context), at<const std::int32_t>(row_starts), scale, at(y),
                Dtype(dtype)});
}

void route(Address logits, Address bias, i64 tokens, i64 experts, i64 top_k, i64 groups, i64 groups_top, bool sigmoid,
           bool group_top2_sum, bool normalise, float scale, Address ids, Address weights) {
  run(&Kernels::route, Route{at<const float>(logits), at<const float>(bias), tokens, experts, top_k, groups, groups_top, sigmoid,
                             group_top2_sum, normalise, scale, at<std::int32_t>(ids), at<float>(weights)});
}

void experts(Address x, i64 tokens, i64 width, i64 ffn, i64 experts_count, i64 top_k, i64 x_stride, Address ids,
             Address weights, Address w13, Address w2, Address y, int dtype, int format) {
  run(&Kernels::experts, Experts{at(x), tokens, width, ffn, experts_count, top_k, x_stride, at<const std::int32_t>(ids),
                                 at<const float>(weights), at(w13), at(w2), at(y), Dtype(dtype), Format(format)});
}

void stream(Address data, i64 bytes) { run(&Kernels::stream, Stream{at(data), bytes}); }

// Asks for huge pages behind a buffer that is not yet written: prefetchers stop at page ends, and translations cost.
void advise_huge_pages(Address address, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr Address page = 2u << 20;
  const Address begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  if (begin < end) madvise(at(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)address;
  (void)bytes;
#endif
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "Vectorised CPU kernels over raw addresses. Private to tokenspeed.kernels.cpu.";
  m.def("linear", &linear);
  m.def("packed_bytes", &packed_bytes);
  m.def("pack", &pack);
  m.def("norm", &norm);
  m.def("silu_mul", &silu_mul);
  m.def("embedding", &embedding);
  m.def("rope_gqa", &rope_gqa);
  m.def("rope_mla", &rope_mla);
  m.def("gqa", &gqa);
  m.def("mla_decode", &mla_decode);
  m.def("mla_extend", &mla_extend);
  m.def("route", &route);
  m.def("experts", &experts);
  m.def("stream", &stream);
  m.def("advise_huge_pages", &advise_huge_pages);
  m.def("set_threads", [](int threads, int spin_us) { nb::gil_scoped_release released; Busy busy; set_threads(threads, spin_us); },
        nb::arg("threads"), nb::arg("spin_us") = 200);
  m.def("threads", &threads);
  m.def("set_isa", [](const std::string& name) { return set_isa(name.c_str()); });
  m.def("isa", [] { return std::string(active().isa); });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const char* const* name = available_isas(); *name != nullptr; ++name) names.emplace_back(*name);
    return names;
  });
}

}  // namespace tokenspeed::cpu

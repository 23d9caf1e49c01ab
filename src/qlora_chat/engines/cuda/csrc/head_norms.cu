// Norms of the heads of a decode step's queries and keys (Qwen3), then RoPE and the cache.
//
// A norm needs the whole head, which a product's epilogue never has: it stores q, k and v, and this kernel does what the epilogue does
// in other families (store_rope in epilogue.cuh).
//
// Compiled for HEAD_DIM and KV8 (see kv_cache.cuh).
#include "common.cuh"
#include "kv_cache.cuh"

#define HALF (HEAD_DIM / 2)
#define PAIRS (HALF / 32)  // of a lane: elements i * 32 + lane and half a head on

struct HeadNorms {
  const float* qkv;       // [R][(heads + 2 * kv_heads) * HEAD_DIM], in the order of rotary_order
  const u16* query_norm;  // [HEAD_DIM] bf16
  const u16* key_norm;
  const float2* rope_cos_sin;  // [window][HALF]
  float* queries;     // [R][heads * HEAD_DIM]
  NewElement* keys;   // this layer's cache [slot][kv head][window][HEAD_DIM] bf16; KV8: [R][kv head][HEAD_DIM]
  NewElement* values;
  Rows rows;
  int heads, kv_heads, window;
  float eps;
};

// One warp per (head, row).
extern "C" __global__ void __launch_bounds__(32) norm_and_rope(const __grid_constant__ HeadNorms p) {
  const int head = blockIdx.x, row = blockIdx.y, lane = threadIdx.x, heads = p.heads + 2 * p.kv_heads;
  launch_dependents();
  wait_for_previous();
  const int slot = p.rows.slots[row], position = p.rows.positions[row];
  if (slot < 0) return;
  const bool is_query = head < p.heads, is_value = head >= p.heads + p.kv_heads;
  const float* const in = p.qkv + ((size_t)row * heads + head) * HEAD_DIM;
  float first[PAIRS], second[PAIRS], squares = 0.0f;
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    const int d = i * 32 + lane, at = is_value ? d : d / 8 * 16 + d % 8;  // eight elements, then their partners
    first[i] = in[at];
    second[i] = in[at + (is_value ? HALF : 8)];
    squares += first[i] * first[i] + second[i] * second[i];
  }
  if (!is_value) {
    const float scale = rsqrtf(warp_sum(squares) / HEAD_DIM + p.eps);
    const u16* const norm = is_query ? p.query_norm : p.key_norm;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      const int d = i * 32 + lane;
      const float2 cos_sin = p.rope_cos_sin[(size_t)position * HALF + d];
      const float v0 = first[i] * scale * bf16_to_float(norm[d]), v1 = second[i] * scale * bf16_to_float(norm[HALF + d]);
      first[i] = v0 * cos_sin.x - v1 * cos_sin.y;
      second[i] = v1 * cos_sin.x + v0 * cos_sin.y;
    }
  }
  if (is_query) {
    float* const out = p.queries + ((size_t)row * p.heads + head) * HEAD_DIM;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) out[i * 32 + lane] = first[i], out[HALF + i * 32 + lane] = second[i];
    return;
  }
  const int kv_head = head - p.heads - (is_value ? p.kv_heads : 0);
#if KV8
  NewElement* const out = (is_value ? p.values : p.keys) + ((size_t)row * p.kv_heads + kv_head) * HEAD_DIM;
#pragma unroll
  for (int i = 0; i < PAIRS; i++) out[i * 32 + lane] = first[i], out[HALF + i * 32 + lane] = second[i];
#else
  u16* const out = (is_value ? p.values : p.keys) + (((size_t)slot * p.kv_heads + kv_head) * p.window + position) * HEAD_DIM;
#pragma unroll
  for (int i = 0; i < PAIRS; i++) out[i * 32 + lane] = float_to_bf16(first[i]), out[HALF + i * 32 + lane] = float_to_bf16(second[i]);
#endif
}

// Prefill: the operations between the matrix products of a decoder layer, many rows at once, one block per row.
//
// The products are cuBLAS's, over weights that gemv.cu's `dequantize` has unpacked. One fused launch for each of these steps keeps
// the card busy with short prompts.
//
// Compiled for HEAD_DIM and KV8 (see kv_cache.cuh).
#include "common.cuh"
#include "kv_cache.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)

struct AddNorm {
  const u16* addend;  // [N][H] bf16; null: nothing is added
  const u16* weight;  // [H] bf16, of the norm
  float* residual;    // [N][H]
  u16* x;             // [N][H] bf16
  int hidden;
  float eps;
};

// residual += addend; x = its RMS norm (Zhang 2019).
extern "C" __global__ void __launch_bounds__(THREADS) add_norm(const __grid_constant__ AddNorm p) {
  __shared__ float sums[WARPS];
  const size_t row = (size_t)blockIdx.x * p.hidden;
  float squares = 0.0f;
  for (int i = threadIdx.x * 2; i < p.hidden; i += THREADS * 2) {
    float2 v = *(const float2*)(p.residual + row + i);
    if (p.addend) {
      const u32 added = *(const u32*)(p.addend + row + i);
      v.x += low_to_float(added);
      v.y += high_to_float(added);
      *(float2*)(p.residual + row + i) = v;
    }
    squares += v.x * v.x + v.y * v.y;
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) total += sums[i];
  const float scale = rsqrtf(total / p.hidden + p.eps);
  for (int i = threadIdx.x * 2; i < p.hidden; i += THREADS * 2) {
    const float2 v = *(const float2*)(p.residual + row + i);
    const u32 weight = *(const u32*)(p.weight + i);
    *(u32*)(p.x + row + i) = floats_to_bf16x2(v.x * scale * low_to_float(weight), v.y * scale * high_to_float(weight));
  }
}

struct RopeAndCache {
  const u16* qkv;       // [N][(heads + 2 * kv_heads) * D] bf16, in the checkpoint's order
  const float2* rope_cos_sin;  // [window][D / 2]
  u16* queries;         // [N][heads * D] bf16
  CacheElement* keys;   // a layer's cache [slot][kv head][window][D]
  CacheElement* values;
  Rows rows;
  int heads, kv_heads, window;
  float* key_scales;    // KV8: [slot][kv head][window]
  float* value_scales;
  const u16* query_norm;  // [D] bf16, of a head's RMS norm (Qwen3); null in families without
  const u16* key_norm;
  float eps;
};

// Apply RoPE (RoFormer, Su 2021; halves of a head as pairs) to queries and keys, after their heads' norms where a model has them;
// write keys and values to the cache. One warp per head; lane l has elements l, 32 + l and so on.
extern "C" __global__ void __launch_bounds__(THREADS) rope_and_cache(const __grid_constant__ RopeAndCache p) {
  constexpr int EACH = HEAD_DIM / 32, HALF = EACH / 2;
  const int lane = threadIdx.x % 32, heads = p.heads + 2 * p.kv_heads;
  const int position = p.rows.positions[blockIdx.x], slot = p.rows.slots[blockIdx.x];
  for (int head = threadIdx.x / 32; head < heads; head += WARPS) {
    const u16* const in = p.qkv + ((size_t)blockIdx.x * heads + head) * HEAD_DIM + lane;
    float v[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) v[i] = bf16_to_float(in[i * 32]);
    const bool is_value = head >= p.heads + p.kv_heads;
    if (p.query_norm && !is_value) {
      const u16* const norm = head < p.heads ? p.query_norm : p.key_norm;
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < EACH; i++) squares += v[i] * v[i];
      const float scale = rsqrtf(warp_sum(squares) / HEAD_DIM + p.eps);
#pragma unroll
      for (int i = 0; i < EACH; i++) v[i] *= scale * bf16_to_float(norm[i * 32 + lane]);
    }
#pragma unroll
    for (int i = 0; i < HALF && !is_value; i++) {
      const float2 cos_sin = p.rope_cos_sin[(size_t)position * (HEAD_DIM / 2) + i * 32 + lane];
      const float first = v[i] * cos_sin.x - v[HALF + i] * cos_sin.y;
      v[HALF + i] = v[HALF + i] * cos_sin.x + v[i] * cos_sin.y;
      v[i] = first;
    }
    const int kv_head = head - p.heads - (is_value ? p.kv_heads : 0);
    const size_t at = ((size_t)slot * p.kv_heads + kv_head) * p.window + position;
    CacheElement* const cached = (is_value ? p.values : p.keys) + at * HEAD_DIM;
#if KV8
    if (head >= p.heads) {
      quantize_head(v, cached, (is_value ? p.value_scales : p.key_scales) + at);
      continue;
    }
#endif
    u16* const out = head < p.heads ? p.queries + ((size_t)blockIdx.x * p.heads + head) * HEAD_DIM : (u16*)cached;
#pragma unroll
    for (int i = 0; i < EACH; i++) out[i * 32 + lane] = float_to_bf16(v[i]);
  }
}

struct SiluTimesUp {
  const u16* gate_up;  // [N][2 * F] bf16
  u16* out;            // [N][stride] bf16, F columns written
  int feed_forward, stride;
};

extern "C" __global__ void __launch_bounds__(THREADS) silu_times_up(const __grid_constant__ SiluTimesUp p) {
  const u16* const gate = p.gate_up + (size_t)blockIdx.y * 2 * p.feed_forward;
  const int i = (blockIdx.x * THREADS + threadIdx.x) * 2;
  if (i >= p.feed_forward) return;
  const u32 g = *(const u32*)(gate + i), up = *(const u32*)(gate + p.feed_forward + i);
  const float first = low_to_float(g), second = high_to_float(g);
  *(u32*)(p.out + (size_t)blockIdx.y * p.stride + i) =
      floats_to_bf16x2(first / (1.0f + __expf(-first)) * low_to_float(up), second / (1.0f + __expf(-second)) * high_to_float(up));
}

// What lies between the products of a decoder layer when prompts are read: many rows at once, one block a row.
//
// The products themselves are a library's, over weights that product.cu's `unpack` has laid out. A launch for each of these
// steps, instead of one for each operation of theirs, is what keeps the card busy with short prompts.
#include "common.cuh"

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

struct Rotate {
  const u16* qkv;       // [N][(heads + 2 * kv_heads) * D] bf16, in the checkpoint's order
  const float2* turns;  // [window][D / 2] cos and sin
  u16* queries;         // [N][heads * D] bf16
  u16* keys;            // a layer's cache [slot][kv head][window][D] bf16
  u16* values;
  Rows rows;
  int heads, kv_heads, head_dim, window;
};

// Queries and keys turned by their position (RoFormer, Su 2021; halves of a head as pairs); keys and values into the cache.
extern "C" __global__ void __launch_bounds__(THREADS) rotate(const __grid_constant__ Rotate p) {
  const int half = p.head_dim / 2, width = (p.heads + 2 * p.kv_heads) * p.head_dim;
  const int position = p.rows.positions[blockIdx.x], slot = p.rows.slots[blockIdx.x];
  const u16* const in = p.qkv + (size_t)blockIdx.x * width;
  for (int i = threadIdx.x; i < width / 2; i += THREADS) {
    const int head = i / half, d = i % half;
    float first = bf16_to_float(in[head * p.head_dim + d]), second = bf16_to_float(in[head * p.head_dim + half + d]);
    if (head < p.heads + p.kv_heads) {
      const float2 turn = p.turns[(size_t)position * half + d];
      const float turned = first * turn.x - second * turn.y;
      second = second * turn.x + first * turn.y;
      first = turned;
    }
    u16* out;
    if (head < p.heads) {
      out = p.queries + ((size_t)blockIdx.x * p.heads + head) * p.head_dim;
    } else {
      const bool is_value = head >= p.heads + p.kv_heads;
      const int kv_head = head - p.heads - (is_value ? p.kv_heads : 0);
      out = (is_value ? p.values : p.keys) + (((size_t)slot * p.kv_heads + kv_head) * p.window + position) * p.head_dim;
    }
    out[d] = float_to_bf16(first);
    out[d + half] = float_to_bf16(second);
  }
}

struct SiluTimesUp {
  const u16* gate_up;  // [N][2 * F] bf16
  u16* out;            // [N][stride] bf16, F of each row
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

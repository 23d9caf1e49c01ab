// Attention of each row over its chat's part of the KV cache, read once and from where it lies.
//
// Rows have lengths of their own, which are read on the device, so one graph serves them all. The positions of a row and key-value
// head are taken in splits (see splits_of), by one block or by several that take turns. Softmax runs online (Milakov & Gimelshein
// 2018); the last block of a row and head to finish joins the splits, in their order, so that the sum depends neither on which that
// was nor on how many blocks there are.
//
// Compiled for HEAD_DIM, GROUP (query heads a key-value head) and KV8 (see kv_cache.cuh).
#include "common.cuh"
#include "kv_cache.cuh"

#define WARPS 4
#define THREADS (WARPS * 32)
#define WIDTH 8                        // elements that a lane reads at once
#define LANES (HEAD_DIM / WIDTH)       // that hold one position's keys
#define SIDE (32 / LANES)              // positions a warp reads at once
#define UNROLL (KV8 && GROUP == 1 ? 8 : 4)  // positions that a side of a warp has at once
#define NONE (-1e30f)

struct Attend {
  const float* queries;  // [R][kv heads * GROUP][HEAD_DIM]
  const Kept* keys;      // this layer's [slot][kv head][window][HEAD_DIM]
  const Kept* values;
  u16* out;         // [R][kv heads * GROUP][HEAD_DIM] bf16
  float* partials;  // [R][kv heads][most splits][GROUP][HEAD_DIM + 2]
  int* arrived;     // [R][kv heads], zero between steps
  Rows rows;
  int kv_heads, window, most_splits;
  float scale;  // log2(e) / sqrt(HEAD_DIM)
  const float* key_scales;  // KV8: [slot][kv head][window]
  const float* value_scales;
};

#if KV8
struct Settle {
  const Newest* newest;  // [2][most_rows][kv heads][HEAD_DIM]: keys, values
  Kept* keys;            // as above
  Kept* values;
  float* key_scales;
  float* value_scales;
  Rows rows;
  int most_rows, kv_heads, window;
};

// The keys and values that the product before has left go into the cache. A block a (kv head, row), a warp each.
extern "C" __global__ void __launch_bounds__(64) settle(const __grid_constant__ Settle p) {
  const int head = blockIdx.x, row = blockIdx.y, is_value = threadIdx.x >> 5;
  let_next_begin();
  wait_for_previous();
  const int slot = p.rows.slots[row];
  if (slot < 0) return;
  const Newest* newest = p.newest + (((size_t)is_value * p.most_rows + row) * p.kv_heads + head) * HEAD_DIM;
  const size_t at = ((size_t)slot * p.kv_heads + head) * p.window + p.rows.positions[row];
  keep_newest<HEAD_DIM>(newest, (is_value ? p.values : p.keys) + at * HEAD_DIM, (is_value ? p.value_scales : p.key_scales) + at);
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS) attend(const __grid_constant__ Attend p) {
  __shared__ float warp_max[WARPS][GROUP], warp_sums[WARPS][GROUP];
  __shared__ float warp_out[WARPS][GROUP * HEAD_DIM];
  __shared__ int is_last;
  const int head = blockIdx.y, row = blockIdx.z;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, side = lane / LANES, d = lane % LANES * WIDTH;
  let_next_begin();
  wait_for_previous();
  const int slot = p.rows.slots[row];
  if (slot < 0) return;
  const int length = p.rows.positions[row] + 1, splits = splits_of(length, p.most_splits), chunk = (length + splits - 1) / splits;
  if ((int)blockIdx.x >= splits) return;
  const size_t base = ((size_t)slot * p.kv_heads + head) * p.window;
  float* const partials = p.partials + ((size_t)row * p.kv_heads + head) * p.most_splits * GROUP * (HEAD_DIM + 2);

  float q[GROUP][WIDTH], most[GROUP], sum[GROUP], out[GROUP][WIDTH];
#pragma unroll
  for (int j = 0; j < GROUP; j++) {
    const float* source = p.queries + (((size_t)row * p.kv_heads + head) * GROUP + j) * HEAD_DIM + d;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) q[j][i] = source[i] * p.scale;
  }
  for (int split = blockIdx.x; split < splits; split += gridDim.x) {
    const int begin = split * chunk, end = min(length, begin + chunk);
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      most[j] = NONE, sum[j] = 0.0f;
#pragma unroll
      for (int i = 0; i < WIDTH; i++) out[j][i] = 0.0f;
    }
    for (int first = begin + warp * SIDE * UNROLL; first < end; first += WARPS * SIDE * UNROLL) {
      Eight keys[UNROLL], values[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const size_t at = base + min(first + u * SIDE + side, end - 1);
        keys[u] = eight_of(p.keys + at * HEAD_DIM + d, p.key_scales + at, false);
        values[u] = eight_of(p.values + at * HEAD_DIM + d, p.value_scales + at, false);
      }
      float score[UNROLL][GROUP];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        float k[WIDTH];
        unfold(keys[u], k);
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
          float dot = 0.0f;
#pragma unroll
          for (int i = 0; i < WIDTH; i++) dot += q[j][i] * k[i];
#pragma unroll
          for (int offset = LANES / 2; offset > 0; offset >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, offset);
          score[u][j] = first + u * SIDE + side < end ? dot * scale_of(keys[u]) : NONE;
        }
      }
#pragma unroll
      for (int j = 0; j < GROUP; j++) {
        float top = most[j];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) top = fmaxf(top, score[u][j]);
        const float shrink = exp2f(most[j] - top);
        most[j] = top;
        sum[j] = __fmul_rn(sum[j], shrink);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) out[j][i] = __fmul_rn(out[j][i], shrink);
      }
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        float v[WIDTH];
        unfold(values[u], v);
        const bool inside = first + u * SIDE + side < end;
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
          const float weight = inside ? exp2f(score[u][j] - most[j]) : 0.0f;
          sum[j] += weight;
          const float factor = weight * scale_of(values[u]);
#pragma unroll
          for (int i = 0; i < WIDTH; i++) out[j][i] = __fmaf_rn(factor, v[i], out[j][i]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
#pragma unroll
      for (int offset = LANES; offset < 32; offset <<= 1) {  // the sides of a warp had every other position
        const float other = __shfl_xor_sync(0xffffffffu, most[j], offset), top = fmaxf(most[j], other), mine = exp2f(most[j] - top);
        sum[j] = __fmul_rn(sum[j], mine);
        sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], offset);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
          out[j][i] = __fmul_rn(out[j][i], mine);
          out[j][i] += __shfl_xor_sync(0xffffffffu, out[j][i], offset);
        }
        most[j] = top;
      }
      if (lane == 0) warp_max[warp][j] = most[j], warp_sums[warp][j] = sum[j];
#pragma unroll
      for (int i = 0; i < WIDTH; i++)
        if (side == 0) warp_out[warp][j * HEAD_DIM + d + i] = out[j][i];
    }
    __syncthreads();
    float* const mine = partials + split * GROUP * (HEAD_DIM + 2);
    for (int index = threadIdx.x; index < GROUP * HEAD_DIM; index += THREADS) {
      const int j = index / HEAD_DIM, at = index % HEAD_DIM;
      float top = NONE, total = 0.0f, value = 0.0f;
#pragma unroll
      for (int i = 0; i < WARPS; i++) top = fmaxf(top, warp_max[i][j]);
#pragma unroll
      for (int i = 0; i < WARPS; i++) {
        const float factor = exp2f(warp_max[i][j] - top);
        total += warp_sums[i][j] * factor;
        value += warp_out[i][index] * factor;
      }
      if (splits == 1) {
        p.out[((size_t)row * p.kv_heads + head) * GROUP * HEAD_DIM + index] = float_to_bf16(value * (1.0f / total));
        continue;
      }
      mine[j * (HEAD_DIM + 2) + at] = value;
      if (at == 0) mine[j * (HEAD_DIM + 2) + HEAD_DIM] = top, mine[j * (HEAD_DIM + 2) + HEAD_DIM + 1] = total;
    }
    __syncthreads();  // the warps' places may be taken again
  }
  if (splits == 1) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int* const arrived = p.arrived + row * p.kv_heads + head;
    const int sharing = min((int)gridDim.x, splits);
    is_last = sharing == 1 || atomicAdd(arrived, 1) == sharing - 1;
    if (is_last) *arrived = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  for (int index = threadIdx.x; index < GROUP * HEAD_DIM; index += THREADS) {
    const int j = index / HEAD_DIM, at = index % HEAD_DIM, stride = GROUP * (HEAD_DIM + 2);
    const float* of_head = partials + j * (HEAD_DIM + 2);
    float top = NONE, total = 0.0f, value = 0.0f;
    for (int i = 0; i < splits; i++) top = fmaxf(top, __ldcg(of_head + i * stride + HEAD_DIM));
    for (int i = 0; i < splits; i++) {
      const float factor = exp2f(__ldcg(of_head + i * stride + HEAD_DIM) - top);
      total += __ldcg(of_head + i * stride + HEAD_DIM + 1) * factor;
      value += __ldcg(of_head + i * stride + at) * factor;
    }
    p.out[((size_t)row * p.kv_heads + head) * GROUP * HEAD_DIM + index] = float_to_bf16(value * (1.0f / total));
  }
}

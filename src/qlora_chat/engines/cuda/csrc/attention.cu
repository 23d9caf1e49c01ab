// Decode attention: each row attends to its chat's part of the KV cache, which is read once and in place.
//
// Row lengths are read on the device, so one graph serves all lengths. The positions of a row and key-value head are divided into
// splits (see splits_of), which one block or several process in turn. Softmax is online (Milakov & Gimelshein 2018). The last block
// of a row and head to finish combines the splits in a fixed order, so the sum depends neither on that block nor on their number.
//
// Compiled for HEAD_DIM, GROUP (query heads a key-value head) and KV8 (see kv_cache.cuh).
#include "common.cuh"
#include "kv_cache.cuh"

#define WARPS 4
#define THREADS (WARPS * 32)
#define WIDTH 8                             // elements per lane and load
#define LANES (HEAD_DIM / WIDTH)            // of a subwarp, which holds one position's key
#define SUBWARPS (32 / LANES)
#define UNROLL (KV8 && GROUP == 1 ? 8 : 4)  // positions per subwarp and iteration
#define NO_SCORE (-1e30f)

struct Attention {
  const float* queries;  // [R][kv heads * GROUP][HEAD_DIM]
  const CacheElement* keys;  // this layer's [slot][kv head][window][HEAD_DIM]
  const CacheElement* values;
  u16* out;         // [R][kv heads * GROUP][HEAD_DIM] bf16
  float* partials;  // [R][kv heads][max splits][GROUP][HEAD_DIM + 2]
  int* arrived;     // [R][kv heads], zero between steps
  Rows rows;
  int kv_heads, window, max_splits;
  float scale;  // log2(e) / sqrt(HEAD_DIM)
  const float* key_scales;  // KV8: [slot][kv head][window]
  const float* value_scales;
};

#if KV8
struct QuantizeKV {
  const NewElement* new_kv;  // [2][max_rows][kv heads][HEAD_DIM]: keys, values
  CacheElement* keys;        // as above
  CacheElement* values;
  float* key_scales;
  float* value_scales;
  Rows rows;
  int max_rows, kv_heads, window;
};

// Quantize the keys and values that the qkv product has left into the cache. One block per (kv head, row), one warp each.
extern "C" __global__ void __launch_bounds__(64) quantize_kv(const __grid_constant__ QuantizeKV p) {
  const int head = blockIdx.x, row = blockIdx.y, is_value = threadIdx.x >> 5;
  launch_dependents();
  wait_for_previous();
  const int slot = p.rows.slots[row];
  if (slot < 0) return;
  const NewElement* new_kv = p.new_kv + (((size_t)is_value * p.max_rows + row) * p.kv_heads + head) * HEAD_DIM;
  const size_t at = ((size_t)slot * p.kv_heads + head) * p.window + p.rows.positions[row];
  quantize_new_head<HEAD_DIM>(new_kv, (is_value ? p.values : p.keys) + at * HEAD_DIM, (is_value ? p.value_scales : p.key_scales) + at);
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS) attention(const __grid_constant__ Attention p) {
  __shared__ float warp_max[WARPS][GROUP], warp_sums[WARPS][GROUP];
  __shared__ float warp_out[WARPS][GROUP * HEAD_DIM];
  __shared__ int is_last;
  const int head = blockIdx.y, row = blockIdx.z;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, subwarp = lane / LANES, d = lane % LANES * WIDTH;
  launch_dependents();
  wait_for_previous();
  const int slot = p.rows.slots[row];
  if (slot < 0) return;
  const int length = p.rows.positions[row] + 1, splits = splits_of(length, p.max_splits), chunk = (length + splits - 1) / splits;
  if ((int)blockIdx.x >= splits) return;
  const size_t base = ((size_t)slot * p.kv_heads + head) * p.window;
  float* const partials = p.partials + ((size_t)row * p.kv_heads + head) * p.max_splits * GROUP * (HEAD_DIM + 2);

  float q[GROUP][WIDTH], running_max[GROUP], sum[GROUP], out[GROUP][WIDTH];
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
      running_max[j] = NO_SCORE, sum[j] = 0.0f;
#pragma unroll
      for (int i = 0; i < WIDTH; i++) out[j][i] = 0.0f;
    }
    for (int first = begin + warp * SUBWARPS * UNROLL; first < end; first += WARPS * SUBWARPS * UNROLL) {
      EightElements keys[UNROLL], values[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const size_t at = base + min(first + u * SUBWARPS + subwarp, end - 1);
        keys[u] = load_eight(p.keys + at * HEAD_DIM + d, p.key_scales + at, false);
        values[u] = load_eight(p.values + at * HEAD_DIM + d, p.value_scales + at, false);
      }
      float score[UNROLL][GROUP];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        float k[WIDTH];
        dequantize_eight(keys[u], k);
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
          float dot = 0.0f;
#pragma unroll
          for (int i = 0; i < WIDTH; i++) dot += q[j][i] * k[i];
#pragma unroll
          for (int offset = LANES / 2; offset > 0; offset >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, offset);
          score[u][j] = first + u * SUBWARPS + subwarp < end ? dot * scale_of(keys[u]) : NO_SCORE;
        }
      }
#pragma unroll
      for (int j = 0; j < GROUP; j++) {
        float new_max = running_max[j];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) new_max = fmaxf(new_max, score[u][j]);
        const float rescale = exp2f(running_max[j] - new_max);
        running_max[j] = new_max;
        sum[j] = __fmul_rn(sum[j], rescale);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) out[j][i] = __fmul_rn(out[j][i], rescale);
      }
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        float v[WIDTH];
        dequantize_eight(values[u], v);
        const bool inside = first + u * SUBWARPS + subwarp < end;
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
          const float weight = inside ? exp2f(score[u][j] - running_max[j]) : 0.0f;
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
      for (int offset = LANES; offset < 32; offset <<= 1) {  // the subwarps have interleaved positions
        const float other = __shfl_xor_sync(0xffffffffu, running_max[j], offset), new_max = fmaxf(running_max[j], other), mine = exp2f(running_max[j] - new_max);
        sum[j] = __fmul_rn(sum[j], mine);
        sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], offset);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
          out[j][i] = __fmul_rn(out[j][i], mine);
          out[j][i] += __shfl_xor_sync(0xffffffffu, out[j][i], offset);
        }
        running_max[j] = new_max;
      }
      if (lane == 0) warp_max[warp][j] = running_max[j], warp_sums[warp][j] = sum[j];
#pragma unroll
      for (int i = 0; i < WIDTH; i++)
        if (subwarp == 0) warp_out[warp][j * HEAD_DIM + d + i] = out[j][i];
    }
    __syncthreads();
    float* const mine = partials + split * GROUP * (HEAD_DIM + 2);
    for (int index = threadIdx.x; index < GROUP * HEAD_DIM; index += THREADS) {
      const int j = index / HEAD_DIM, at = index % HEAD_DIM;
      float new_max = NO_SCORE, total = 0.0f, value = 0.0f;
#pragma unroll
      for (int i = 0; i < WARPS; i++) new_max = fmaxf(new_max, warp_max[i][j]);
#pragma unroll
      for (int i = 0; i < WARPS; i++) {
        const float factor = exp2f(warp_max[i][j] - new_max);
        total += warp_sums[i][j] * factor;
        value += warp_out[i][index] * factor;
      }
      if (splits == 1) {
        p.out[((size_t)row * p.kv_heads + head) * GROUP * HEAD_DIM + index] = float_to_bf16(value * (1.0f / total));
        continue;
      }
      mine[j * (HEAD_DIM + 2) + at] = value;
      if (at == 0) mine[j * (HEAD_DIM + 2) + HEAD_DIM] = new_max, mine[j * (HEAD_DIM + 2) + HEAD_DIM + 1] = total;
    }
    __syncthreads();  // before the next split overwrites warp_max, warp_sums and warp_out
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
    float new_max = NO_SCORE, total = 0.0f, value = 0.0f;
    for (int i = 0; i < splits; i++) new_max = fmaxf(new_max, __ldcg(of_head + i * stride + HEAD_DIM));
    for (int i = 0; i < splits; i++) {
      const float factor = exp2f(__ldcg(of_head + i * stride + HEAD_DIM) - new_max);
      total += __ldcg(of_head + i * stride + HEAD_DIM + 1) * factor;
      value += __ldcg(of_head + i * stride + at) * factor;
    }
    p.out[((size_t)row * p.kv_heads + head) * GROUP * HEAD_DIM + index] = float_to_bf16(value * (1.0f / total));
  }
}

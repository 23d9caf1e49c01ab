// All decoder layers of a step of one or two rows in one kernel, for NF4 weights with unmerged LoRA adapters.
//
// One block per SM stays resident for the whole step. Between products the blocks meet at a barrier in global memory, but their rings
// of weights continue across it: what follows a barrier is fetched before it. The adapters, which cost gemv.cu five microseconds per
// product, are computed by two extra warps, whose setup is done once per step. The parts are those of gemv.cu and attention.cu; a
// product's warps share each item (two row tiles) by splitting K, two blocks at a time. Eight warps: with more, each has too few
// registers.
//
// Compiled for LAYERS, ROWS, STAGES, LORA (rank of the adapters), WIDE (see nf4_table.cuh) and KV8 (see kv_cache.cuh). Heads have 128
// dimensions, as many key-value heads as query heads. Lane: g = lane / 4, t = lane % 4.
#define WARPS 8                   // that multiply with the weights
#define TILES 2                   // of an item
#define LORA_WARPS TILES          // one for each of an item's tiles
#include "common.cuh"
#include "kv_cache.cuh"
#include "epilogue.cuh"
#include "nf4_table.cuh"
#include "lora.cuh"

#define ALL_WARPS (WARPS + LORA_WARPS)
#define PARTS (WARPS + 1)         // of an item's sums: the adapters' is one more
#define BUFFERS 4                 // of sums: A x takes the adapters' warps as long as three items take the others
#define THREADS (ALL_WARPS * 32)
#define HEAD_DIM 128
#define PARTIAL (HEAD_DIM + 4)  // floats of a split: its values, its highest score and its sum
#define PAIR_BYTES 1056  // two blocks of 64 of a row tile: 1024 bytes of codes, 32 of absmax codes
#define STAGE_BYTES (TILES * PAIR_BYTES)
#define COLUMNS 2                 // of the sums: of the eight that an instruction gives, those that have rows
#define QKV 0
#define OUT 1
#define GATE_UP 2
#define DOWN 3

struct Layers {
  const u8* tiles[LAYERS * 4];  // qkv, out, gate and up, down of each layer
  const float4* nested[LAYERS * 4];
  const float* biases[LAYERS];  // of qkv, or null
  const u16* norms[LAYERS * 2]; // that follow the out and the down product
  const float* code;            // [16] and [256]
  CacheElement* keys;           // [LAYERS][slot][head][window][HEAD_DIM]
  CacheElement* values;
  const float2* rope_cos_sin;
  u16* x;            // [R][H]
  u16* activated;    // [R][F]
  float* residual;   // [R][H]
  float* queries;    // [R][H]
  float* partials;   // [R][heads][max splits][PARTIAL]
  float* squares;    // [2][max_rows][MAX_PARTIALS]: for the norms before qkv and before gate and up
  int* arrived;      // of the barrier; zero at the start
  Rows rows;
  u64 layer_elements;  // of keys
  int row_tiles[4], k_blocks[4];
  int heads, window, hidden, feed_forward, max_splits, first_squares, max_rows, max_blocks;
  float eps, inverse_hidden, softmax_scale;
  NewElement* new_kv; // KV8: [2][max_rows][heads][HEAD_DIM]: keys, values
  float* key_scales;  // KV8: [LAYERS][slot][head][window]
  float* value_scales;
  u64 lora_layer;             // bytes of an adapter's tiles for a layer
  u64 lora_a[4], lora_b[4];   // of each product, in its layer
  int lora_outputs[4];
  Lora lora;
};

extern __shared__ __align__(128) u8 shared[];
#define RING_BYTES (WARPS * STAGES * STAGE_BYTES)
#define SUM_FLOATS (PARTS * TILES * 16 * COLUMNS)
#define SCRATCH_FLOATS ((ALL_WARPS * (HEAD_DIM + 2) + 3) / 4 * 4)  // attention reuses the sums' memory
#define SUMS_FLOATS (BUFFERS * SUM_FLOATS > SCRATCH_FLOATS ? BUFFERS * SUM_FLOATS : SCRATCH_FLOATS)

// The product's fields that epilogue.cuh reads.
struct EpilogueArgs {
  float* residual;
  float* squares_out;
  const u16* norm;
  u16* x_out;
  float* out;
  NewElement* keys;
  NewElement* values;
  const float2* rope_cos_sin;
  const float* bias;
  Rows rows;
  int epilogue, outputs, heads, kv_heads, head_dim, window;
};

__device__ __forceinline__ void grid_barrier(int* arrived, int& target) {
  __syncthreads();
  if (threadIdx.x == 0) {
    target += gridDim.x;
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(arrived) : "memory");
    int seen;
    do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(arrived) : "memory");
    while (seen < target);
  }
  __syncthreads();
}

// A thread block's row tiles of a product.
struct Range {
  int begin, end;
};
__device__ __forceinline__ Range range_of(int tiles) {
  return {(int)(blockIdx.x * tiles / gridDim.x), (int)((blockIdx.x + 1) * tiles / gridDim.x)};
}

// A warp's position in the weights it fetches: the items of a product, then of the next, to the end of the step.
struct Cursor {
  const u8* source;
  int tile_bytes, jump;  // from a tile to the next; from the end of this warp's part of an item to that of the next
  int product, tiles_left, pairs_left, pairs, stage;
};

__device__ __forceinline__ void enter_product(const Layers& p, const Range* ranges, Cursor& next, int warp, int lane) {
  const int kind = next.product & 3, pairs = p.k_blocks[kind] / 2, first = warp * pairs / WARPS;
  const Range range = ranges[kind];
  next.pairs = next.pairs_left = (warp + 1) * pairs / WARPS - first;
  next.tiles_left = range.end - range.begin;
  next.tile_bytes = pairs * PAIR_BYTES;
  next.jump = TILES * next.tile_bytes - next.pairs * PAIR_BYTES;
  next.source = p.tiles[next.product] + ((size_t)range.begin * pairs + first) * PAIR_BYTES + lane * 16;
}

__device__ __forceinline__ void fetch(const Layers& p, const Range* ranges, Cursor& next, u32 ring, int warp, int lane) {
  if (next.product < LAYERS * 4) {
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      if (i && next.tiles_left == i) break;  // a last item may have fewer
      const u32 target = ring + next.stage * STAGE_BYTES + i * PAIR_BYTES + lane * 16;
      const u8* const source = next.source + i * next.tile_bytes;
      copy_16_async(target, source);
      copy_16_async(target + 512, source + 512);
      if (lane < 2) copy_16_async(target + 1024, source + 1024);
    }
    next.source += PAIR_BYTES;
    if (--next.pairs_left == 0) {
      next.pairs_left = next.pairs;
      next.source += next.jump;
      next.tiles_left -= TILES;
      if (next.tiles_left <= 0 && ++next.product < LAYERS * 4) enter_product(p, ranges, next, warp, lane);
    }
  }
  next.stage = next.stage + 1 == STAGES ? 0 : next.stage + 1;
  commit_copies();
}

// Multiply 16 x 64 unscaled weights with this lane's part of x.
__device__ __forceinline__ void multiply(float (&d)[4], const uint4& c, const uint4& x0, const uint4& x1, const u8* table, u32 lane_offset) {
  const u32 upper[2] = {c.x, c.y}, lower[2] = {c.z, c.w}, b[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
#pragma unroll
  for (int step = 0; step < 4; step++) {
    const int half = step >> 1, byte = (step & 1) * 2;
    mma_16x8x16(d, dequantize_pair(table, upper[half], byte, lane_offset), dequantize_pair(table, lower[half], byte, lane_offset),
                dequantize_pair(table, upper[half], byte + 1, lane_offset), dequantize_pair(table, lower[half], byte + 1, lane_offset), b[2 * step],
                b[2 * step + 1]);
  }
}

#if KV8
// Quantize this step's keys and values of a split's positions into the cache. Splits that share a position write the same values, so
// none has to wait for another.
__device__ __forceinline__ void quantize_kv(const Layers& p, size_t first, int slot, int head, int begin, int end) {
  const int row = threadIdx.x >> 6, is_value = threadIdx.x >> 5 & 1;
  if (row >= ROWS || p.rows.slots[row] != slot) return;
  const int position = p.rows.positions[row];
  if (position < begin || position >= end) return;
  const NewElement* new_kv = p.new_kv + (((size_t)is_value * p.max_rows + row) * p.heads + head) * HEAD_DIM;
  const size_t at = first + position;
  quantize_new_head<HEAD_DIM>(new_kv, (is_value ? p.values : p.keys) + at * HEAD_DIM, (is_value ? p.value_scales : p.key_scales) + at);
}
#endif

// A unit of attention: one split (see splits_of) of the positions of a row and head.
struct AttentionSplit {
  int row, slot, head, split, begin, end;  // row: ROWS past the end
};

// The split with this number, counted over all rows and heads.
__device__ __forceinline__ AttentionSplit attention_split(const Layers& p, int number) {
  for (int row = 0; row < ROWS; row++) {
    const int slot = p.rows.slots[row], length = p.rows.positions[row] + 1, splits = slot < 0 ? 0 : splits_of(length, p.max_splits);
    if (number < p.heads * splits) {
      const int split = number % splits, chunk = (length + splits - 1) / splits, begin = split * chunk;
      return {row, slot, number / splits, split, begin, min(length, begin + chunk)};
    }
    number -= p.heads * splits;
  }
  return {ROWS, -1, 0, 0, 0, 0};
}

// Compute the softmax-weighted values of this block's splits, by all warps; not yet divided by the sum of weights.
__device__ void attention(const Layers& p, int layer, float* scratch) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, subwarp = lane >> 4, d = (lane & 15) * 8;
  constexpr int UNROLL = 4, STRIDE = ALL_WARPS * 2 * UNROLL;
  float* const warp_max = scratch + ALL_WARPS * HEAD_DIM;
  float* const totals = warp_max + ALL_WARPS;
  for (int number = blockIdx.x;; number += gridDim.x) {
    const AttentionSplit part = attention_split(p, number);
    const int row = part.row, head = part.head, begin = part.begin, end = part.end;
    if (row == ROWS) return;
    const size_t base = layer * p.layer_elements + ((size_t)part.slot * p.heads + head) * p.window * HEAD_DIM;
#if KV8
    quantize_kv(p, base / HEAD_DIM, part.slot, head, begin, end);
    __syncthreads();
#endif
    float q[8], out[8] = {}, top = -1e30f, total = 0.0f;
    const float4* query = (const float4*)(p.queries + ((size_t)row * p.heads + head) * HEAD_DIM + d);
    const float4 q0 = __ldcg(query), q1 = __ldcg(query + 1);
    q[0] = q0.x, q[1] = q0.y, q[2] = q0.z, q[3] = q0.w, q[4] = q1.x, q[5] = q1.y, q[6] = q1.z, q[7] = q1.w;
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] *= p.softmax_scale;
    for (int first = begin + warp * 2 * UNROLL + subwarp; first - subwarp < end; first += STRIDE) {
      EightElements k[UNROLL], v[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int position = min(first + u * 2, end - 1);
        const size_t at = base + (size_t)position * HEAD_DIM + d, scale = base / HEAD_DIM + position;
        k[u] = load_eight(p.keys + at, p.key_scales + scale, true);
        v[u] = load_eight(p.values + at, p.value_scales + scale, true);
      }
      float score[UNROLL], highest = top;
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        float key[8];
        dequantize_eight(k[u], key);
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) dot += q[i] * key[i];
#pragma unroll
        for (int offset = 8; offset > 0; offset >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, offset);
        score[u] = first + u * 2 < end ? dot * scale_of(k[u]) : -1e30f;
        highest = fmaxf(highest, score[u]);
      }
      const float rescale = exp2f(top - highest);
      top = highest, total = __fmul_rn(total, rescale);
#pragma unroll
      for (int i = 0; i < 8; i++) out[i] = __fmul_rn(out[i], rescale);
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const float weight = first + u * 2 < end ? exp2f(score[u] - top) : 0.0f;
        const float factor = weight * scale_of(v[u]);
        float value[8];
        dequantize_eight(v[u], value);
        total += weight;
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = __fmaf_rn(factor, value[i], out[i]);
      }
    }
    {  // the two subwarps have interleaved positions
      const float other = __shfl_xor_sync(0xffffffffu, top, 16), highest = fmaxf(top, other), mine = exp2f(top - highest);
      total = __fmul_rn(total, mine);
      total += __shfl_xor_sync(0xffffffffu, total, 16);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        out[i] = __fmul_rn(out[i], mine);
        out[i] += __shfl_xor_sync(0xffffffffu, out[i], 16);
      }
      top = highest;
    }
    if (subwarp == 0) {
      *(float4*)(scratch + warp * HEAD_DIM + d) = make_float4(out[0], out[1], out[2], out[3]);
      *(float4*)(scratch + warp * HEAD_DIM + d + 4) = make_float4(out[4], out[5], out[6], out[7]);
      if (lane == 0) warp_max[warp] = top, totals[warp] = total;
    }
    __syncthreads();
    if (threadIdx.x < HEAD_DIM) {
      float highest = -1e30f, sum = 0.0f, value = 0.0f;
#pragma unroll
      for (int w = 0; w < ALL_WARPS; w++) highest = fmaxf(highest, warp_max[w]);
#pragma unroll
      for (int w = 0; w < ALL_WARPS; w++) {
        const float factor = exp2f(warp_max[w] - highest);
        sum += totals[w] * factor;
        value += scratch[w * HEAD_DIM + threadIdx.x] * factor;
      }
      float* const to = p.partials + (((size_t)row * p.heads + head) * p.max_splits + part.split) * PARTIAL;
      to[threadIdx.x] = value;
      if (threadIdx.x == 0) to[HEAD_DIM] = highest, to[HEAD_DIM + 1] = sum;
    }
    __syncthreads();
  }
}

// Index of 16 bytes of x in shared memory, laid out as the lanes read it: [block][2][ROWS][4].
__device__ __forceinline__ int x_index(int unit, int row) { return ((unit >> 3) * 2 + (unit & 1)) * ROWS * 4 + row * 4 + (unit >> 1 & 3); }

// Combine the splits of this warp's heads into its blocks of x. The warp reads a head's 128 dimensions together, in whole cache lines:
// with eight dimensions per lane, split after split, this took 5 us per layer.
__device__ __forceinline__ void fill_x_from_attention(const Layers& p, uint4* x, int k0, int k1, int lane) {
  constexpr int UNITS = 2, AT_ONCE = 4;
  const int heads = (k1 - k0) / 2;
  for (int begin = 0; begin < ROWS * heads; begin += UNITS) {
    const float* from[UNITS];
    float2 weight[UNITS];  // x, y: highest score and sum of the split with this lane's number
    float4 value[UNITS];
    int splits[UNITS], most = 1;
#pragma unroll
    for (int j = 0; j < UNITS; j++) {
      const int unit = min(begin + j, ROWS * heads - 1), row = unit % ROWS, head = k0 / 2 + unit / ROWS;
      splits[j] = max(1, splits_of(p.rows.positions[row] + 1, p.max_splits));
      most = max(most, splits[j]);
      from[j] = p.partials + ((size_t)row * p.heads + head) * p.max_splits * PARTIAL;
      weight[j] = __ldcg((const float2*)(from[j] + min(lane, splits[j] - 1) * PARTIAL + HEAD_DIM));
      if (lane >= splits[j]) weight[j] = make_float2(-1e30f, 0.0f);
      value[j] = make_float4(0, 0, 0, 0);
    }
    for (int first = 0; first < most; first += AT_ONCE) {
      float4 of_split[UNITS][AT_ONCE];
#pragma unroll
      for (int j = 0; j < UNITS * AT_ONCE; j++)
        if (first + j % AT_ONCE < splits[j / AT_ONCE])
          of_split[j / AT_ONCE][j % AT_ONCE] = __ldcg((const float4*)(from[j / AT_ONCE] + (first + j % AT_ONCE) * PARTIAL) + lane);
      if (first == 0) {
#pragma unroll
        for (int j = 0; j < UNITS; j++) {  // from here on x is the split's weight
          float top = weight[j].x;
#pragma unroll
          for (int offset = 16; offset > 0; offset >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
          const float factor = exp2f(weight[j].x - top);
          weight[j].x = factor / warp_sum(factor * weight[j].y);
        }
      }
#pragma unroll
      for (int j = 0; j < UNITS * AT_ONCE; j++) {
        const float by = __shfl_sync(0xffffffffu, weight[j / AT_ONCE].x, first + j % AT_ONCE);
        if (first + j % AT_ONCE >= splits[j / AT_ONCE]) continue;
        const float4 more = of_split[j / AT_ONCE][j % AT_ONCE];
        float4& v = value[j / AT_ONCE];
        v.x += more.x * by, v.y += more.y * by, v.z += more.z * by, v.w += more.w * by;
      }
    }
#pragma unroll
    for (int j = 0; j < UNITS; j++) {
      if (begin + j >= ROWS * heads) continue;
      const int k = k0 * 64 + (begin + j) / ROWS * HEAD_DIM + lane * 4, row = (begin + j) % ROWS;
      uint2* const to = (uint2*)(x + x_index(k / 8, row)) + (k / 4 & 1);
      *to = make_uint2(floats_to_bf16x2(value[j].x, value[j].y), floats_to_bf16x2(value[j].z, value[j].w));
    }
  }
}

// Copy this warp's blocks of x to shared memory.
__device__ __forceinline__ void fill_x(const Layers& p, int kind, uint4* x, int k0, int k1, int lane) {
  constexpr int AT_ONCE = ROWS == 1 ? 3 : 2;
  if (kind == OUT) return fill_x_from_attention(p, x, k0, k1, lane);
  const uint4* const source = (const uint4*)(kind == DOWN ? p.activated : p.x);
  const int stride = p.k_blocks[kind] * 8;
  for (int first = k0 * 8 + lane; first < k1 * 8; first += 32 * AT_ONCE) {
    uint4 v[AT_ONCE][ROWS];
#pragma unroll
    for (int i = 0; i < AT_ONCE * ROWS; i++)
      if (first + i / ROWS * 32 < k1 * 8) v[i / ROWS][i % ROWS] = __ldcg(source + i % ROWS * stride + first + i / ROWS * 32);
#pragma unroll
    for (int i = 0; i < AT_ONCE * ROWS; i++)
      if (first + i / ROWS * 32 < k1 * 8) x[x_index(first + i / ROWS * 32, i % ROWS)] = v[i / ROWS][i % ROWS];
  }
}

// 1 / rms of x before its norm, from the partial sums of squares.
__device__ __forceinline__ float scale_of_row(const Layers& p, int kind, int row, int count, int lane) {
  if (kind != QKV && kind != GATE_UP) return 1.0f;
  const float* partial = p.squares + ((size_t)(kind == GATE_UP ? p.max_rows : 0) + row) * MAX_PARTIALS;
  float total = 0.0f;
#pragma unroll 8
  for (int i = lane; i < count; i += 32) total += __ldcg(partial + i);
  return rsqrtf(warp_sum(total) * p.inverse_hidden + p.eps);
}

__device__ __forceinline__ EpilogueArgs epilogue_args(const Layers& p, int layer, int kind) {
  EpilogueArgs n;
  n.residual = p.residual;
  n.squares_out = p.squares + (kind == OUT ? (size_t)p.max_rows * MAX_PARTIALS : 0);
  n.norm = kind == OUT || kind == DOWN ? p.norms[layer * 2 + (kind == DOWN)] : nullptr;
  n.x_out = kind == GATE_UP ? p.activated : p.x;
  n.out = p.queries;
#if KV8
  n.keys = p.new_kv;
  n.values = p.new_kv + (size_t)p.max_rows * p.heads * HEAD_DIM;
#else
  n.keys = p.keys + layer * p.layer_elements;
  n.values = p.values + layer * p.layer_elements;
#endif
  n.rope_cos_sin = p.rope_cos_sin;
  n.bias = kind == QKV ? p.biases[layer] : nullptr;
  n.rows = p.rows;
  n.epilogue = kind == QKV ? ROPE_AND_CACHE : kind == GATE_UP ? SILU_TIMES_UP : ADD_TO_RESIDUAL;
  n.outputs = kind == GATE_UP ? p.feed_forward : p.hidden;
  n.heads = n.kv_heads = p.heads;
  n.head_dim = HEAD_DIM;
  n.window = p.window;
  return n;
}

__device__ __forceinline__ LoraProduct lora_product(const Layers& p, int product) {
  const int kind = product & 3;
  const size_t layer = (product >> 2) * p.lora_layer;
  const int sharing = min((int)gridDim.x, (p.row_tiles[kind] + 1) / 2);  // as in gemv.cu, so that both round alike
  return {layer + p.lora_a[kind], layer + p.lora_b[kind], product, p.lora_outputs[kind], p.k_blocks[kind], sharing};
}

// Signal to the adapters' warps that this warp has filled its part of x, without waiting for the others.
__device__ __forceinline__ void signal_x_filled() { asm volatile("bar.arrive 2, %0;" ::"n"(THREADS) : "memory"); }
__device__ __forceinline__ void wait_for_x() { asm volatile("bar.sync 2, %0;" ::"n"(THREADS) : "memory"); }

// Compute what the adapters add to a product's items, as one more part of their sums; each warp has one tile of each item.
__device__ void add_lora(const Layers& p, int product, const Range& range, const uint4* x, const LoraShared* shared, u8* shared_a,
                             float* sums, u64* full, u64* free, int& number, int thread) {
  const LoraProduct part = lora_product(p, product);
  const int kind = product & 3, lane = thread & 31, mine = thread >> 5;
  BTile next = load_b_tile(part, shared->groups[0], min(range.begin + mine, range.end - 1), lane);
  if (kind == OUT) wait_for_x();
  const uint4* const source = (const uint4*)(kind == DOWN ? p.activated : p.x);
  multiply_a<1>(p.lora, part, shared->shares[kind], ROWS, shared, shared_a, thread, [&](int block, int half, int column) {
    if (column >= ROWS) return make_uint4(0, 0, 0, 0);
    if (kind == OUT) return x[(block * 2 + half) * ROWS * 4 + column * 4 + (lane & 3)];
    return __ldcg(source + (column * part.blocks + block) * 8 + (lane & 3) * 2 + half);
  });
  collect_ax(p.lora, part, shared->shares[kind], ROWS, shared, thread);
  for (int item = range.begin; item < range.end; item += TILES, number++) {
    const int tile = item + mine, head = tile / (HEAD_DIM / 16);
    const int first = kind != QKV ? 0 : head < p.heads ? 0 : head < 2 * p.heads ? LORA : 2 * LORA;  // of q, k or v
    const int second = kind == GATE_UP ? LORA : first;
    float d[1][4] = {};
    for (int i = 0; i < shared->count; i++) {
      const BTile b_tile = i ? load_b_tile(part, shared->groups[i], min(tile, range.end - 1), lane) : next;
      multiply_b<1>(p.lora, shared, b_tile, shared->groups[i].rows, first, second, lane, d);
    }
    next = load_b_tile(part, shared->groups[0], min(tile + TILES, range.end - 1), lane);
    const int buffer = number % BUFFERS;
    if (number >= BUFFERS) barrier_wait(free + buffer, (number / BUFFERS + 1) & 1);
    if (2 * (lane & 3) < COLUMNS) {
      float* const to = sums + buffer * SUM_FLOATS + ((WARPS * TILES + mine) * 16 + (lane >> 2)) * COLUMNS + 2 * (lane & 3);
      *(float2*)to = make_float2(d[0][0], d[0][1]);
      *(float2*)(to + 8 * COLUMNS) = make_float2(d[0][2], d[0][3]);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(full + buffer);
    if (item == range.begin && product + 1 < LAYERS * 4)
      prefetch_a(p.lora, lora_product(p, product + 1), shared->shares[(kind + 1) & 3], shared, shared_a, thread);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) layers(const __grid_constant__ Layers p) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  u8* const table = shared;
  float* const absmax_code = (float*)(shared + TABLE_BYTES);
  u8* const ring_bytes = shared + TABLE_BYTES + CODE_BYTES + (size_t)warp * STAGES * STAGE_BYTES;
  const u32 ring = (u32)__cvta_generic_to_shared(ring_bytes);
  float* const sums = (float*)(shared + TABLE_BYTES + CODE_BYTES + RING_BYTES);
  float* const scales = sums + SUMS_FLOATS;    // [4] 1 / rms of each row
  Range* const ranges = (Range*)(scales + 4);  // [4]
  u64* const full = (u64*)(ranges + 4);
  u64* const free = full + BUFFERS;
  uint4* const zeros = (uint4*)(free + BUFFERS);  // x of lanes that have no row
  uint4* const x = zeros + 1;
  LoraShared* const lora_shared = (LoraShared*)(x + (size_t)p.max_blocks * 8 * ROWS);
  u8* const shared_a = (u8*)(lora_shared + 1);

  launch_dependents();
  if (threadIdx.x < 4) ranges[threadIdx.x] = range_of(p.row_tiles[threadIdx.x]);
  __syncthreads();
  Cursor next = {};
  if (warp < WARPS) {
    enter_product(p, ranges, next, warp, lane);
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch(p, ranges, next, ring, warp, lane);
  }
  if (threadIdx.x < BUFFERS) {
    barrier_init(full + threadIdx.x, ALL_WARPS);
    barrier_init(free + threadIdx.x, 1);
  }
  if (threadIdx.x == 0) *zeros = make_uint4(0, 0, 0, 0);
  if (warp == WARPS) {
    group_rows(p.lora, ROWS, lora_shared, shared_a + p.lora.prefetched * LORA_BLOCK, 8, lane);
    if (lane < 4) lora_shared->shares[lane] = share_of(lora_product(p, lane));
  }
  make_table(p.code, table, absmax_code, THREADS);
  __syncthreads();
  wait_for_previous();
  const int lora_thread = (int)threadIdx.x - WARPS * 32;  // negative: not an adapter warp
  if (lora_thread >= 0) prefetch_a(p.lora, lora_product(p, 0), lora_shared->shares[0], lora_shared, shared_a, lora_thread);

  int stage = 0, number = 0, target = 0, partial_count = p.first_squares;
  for (int product = 0; product < LAYERS * 4; product++) {
    const int kind = product & 3, layer = product >> 2, pairs = p.k_blocks[kind] / 2;
    const Range range = ranges[kind];
    if (product) grid_barrier(p.arrived, target);
    if (kind == OUT) {
      attention(p, layer, sums);
      grid_barrier(p.arrived, target);
    }
    if (lora_thread >= 0) add_lora(p, product, range, x, lora_shared, shared_a, sums, full, free, number, lora_thread);
    const int k0 = warp * pairs / WARPS * 2, k1 = (warp + 1) * pairs / WARPS * 2;
    if (warp < WARPS) {
      fill_x(p, kind, x, k0, k1, lane);
      if (warp < ROWS) {
        const float scale = scale_of_row(p, kind, warp, partial_count, lane);
        if (lane == 0) scales[warp] = scale;
      }
      if (kind == OUT) signal_x_filled();
      __syncwarp();
    }
    const EpilogueArgs n = epilogue_args(p, layer, kind);
    const float4* const nested_rows = p.nested[product] + (lane & 15);
    float4 nested[TILES];
#pragma unroll
    for (int i = 0; i < TILES; i++) nested[i] = nested_rows[min(range.begin + i, range.end - 1) * 16];
    for (int item = warp < WARPS ? range.begin : range.end; item < range.end; item += TILES, number++) {
      float4 nested_later[TILES];
#pragma unroll
      for (int i = 0; i < TILES; i++) nested_later[i] = nested_rows[min(item + TILES + i, range.end - 1) * 16];
      float acc[TILES][4] = {};
      const uint4* x_of_lane = g < ROWS ? x + k0 * 8 * ROWS + g * 4 + t : zeros;
      const int step = g < ROWS ? ROWS * 4 : 0;
      for (int block = k0; block < k1; block += 2) {
        wait_copies_except<STAGES - 2>();
        __syncwarp();
        const uint4 x0 = x_of_lane[0], x1 = x_of_lane[step], x2 = x_of_lane[2 * step], x3 = x_of_lane[3 * step];
        x_of_lane += 4 * step;
#pragma unroll
        for (int i = 0; i < TILES; i++) {
          if (i && item + i == range.end) break;
          const u8* const at = ring_bytes + stage * STAGE_BYTES + i * PAIR_BYTES;
          const uint4 codes0 = *(const uint4*)(at + lane * 16), codes1 = *(const uint4*)(at + 512 + lane * 16);
          const float absmax = block + (lane >> 4) < (int)nested[i].z ? nested[i].x : nested[i].y;
          const float scale = __fadd_rn(__fmul_rn(absmax_code[at[1024 + lane]], absmax), nested[i].w);
          float d0[4] = {}, d1[4] = {};
          multiply(d0, codes0, x0, x1, table, lane * 4);
          multiply(d1, codes1, x2, x3, table, lane * 4);
          const float upper0 = __shfl_sync(0xffffffffu, scale, g), lower0 = __shfl_sync(0xffffffffu, scale, g + 8);
          const float upper1 = __shfl_sync(0xffffffffu, scale, g + 16), lower1 = __shfl_sync(0xffffffffu, scale, g + 24);
          acc[i][0] += d0[0] * upper0, acc[i][1] += d0[1] * upper0, acc[i][2] += d0[2] * lower0, acc[i][3] += d0[3] * lower0;
          acc[i][0] += d1[0] * upper1, acc[i][1] += d1[1] * upper1, acc[i][2] += d1[2] * lower1, acc[i][3] += d1[3] * lower1;
        }
        fetch(p, ranges, next, ring, warp, lane);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
      }
#pragma unroll
      for (int i = 0; i < TILES; i++) nested[i] = nested_later[i];
      const int buffer = number % BUFFERS, round = number / BUFFERS;
      float* const item_sums = sums + buffer * SUM_FLOATS;
      if (number >= BUFFERS) barrier_wait(free + buffer, (round + 1) & 1);
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        if (2 * t >= COLUMNS) continue;
        float* const to = item_sums + ((warp * TILES + i) * 16 + g) * COLUMNS + 2 * t;
        *(float2*)to = make_float2(acc[i][0], acc[i][1]);
        *(float2*)(to + 8 * COLUMNS) = make_float2(acc[i][2], acc[i][3]);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(full + buffer);
      if (warp != number % WARPS) continue;  // the warps finish items in turn
      barrier_wait(full + buffer, round & 1);
      // eight lanes have a tile's outputs of a row, r and r + 8 each
      const int r = lane % 8, column = lane / 8 % COLUMNS, i = lane / 8 / COLUMNS, tile = item + i;
      const bool is_there = column < ROWS && tile < range.end && p.rows.slots[column] >= 0;
      float square = 0.0f;
      if (is_there) {
        const float* from = item_sums + (i * 16 + r) * COLUMNS + column;
        float v0 = 0.0f, v1 = 0.0f;
#pragma unroll
        for (int w = 0; w < PARTS; w++) v0 += from[w * TILES * 16 * COLUMNS], v1 += from[(w * TILES * 16 + 8) * COLUMNS];
        square = apply_epilogue(n, tile, r, column, v0, v1, scales[column]);
      }
      store_squares(n, tile, r, column, is_there, square);
      __syncwarp();
      if (lane == 0) barrier_arrive(free + buffer);
    }
    if (n.epilogue == ADD_TO_RESIDUAL) partial_count = p.row_tiles[kind];
  }
}

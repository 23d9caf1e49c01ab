// All decoder layers of a step of one to four rows in one kernel, for NF4 weights: the way from 2 to 1.5 ms a token of a 7B.
//
// One block an SM stays for the whole step. Between products the blocks wait for each other at a barrier in the card's memory,
// but their rings of weights run on: what comes after a barrier is on its way before it, so that memory never rests. The parts are
// those of product.cu and attend.cu; a product's warps share each item (one row tile) by splitting K, two blocks at a time.
// Unmerged adapters are the work of warps of their own. All sums are split as they are there, so that a row is computed alike, to the
// bit, in wider steps: where one of the two is changed, the other must be.
//
// Compiled for LAYERS, ROWS, STAGES, LORA (rank of the adapters, 0: none), WIDE (1: the table of pairs has rows of 256 bytes, so
// that a byte is a lane's address in one instruction) and KV8 (see kept.cuh). Heads have 128 dimensions, as many key-value heads as
// query heads. Lane: g = lane / 4, t = lane % 4.
#include "common.cuh"
#include "kept.cuh"
#include "epilogue.cuh"
#if LORA
#include "lora.cuh"
#endif

#define WARPS 16                          // that multiply with the weights
#if LORA
#define ALL_WARPS (WARPS + LORA_WARPS)
#define PARTS (WARPS + 1)                 // of an item's sums: the adapters' is one more
#else
#define ALL_WARPS WARPS
#define PARTS WARPS
#endif
#define THREADS (ALL_WARPS * 32)
#define HEAD_DIM 128
#define PAIR_BYTES 1056  // two blocks of 64 of a row tile: 1024 bytes of codes, 32 of absmax codes
#define COLUMNS 8
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
  Kept* keys;                   // [LAYERS][slot][head][window][HEAD_DIM]
  Kept* values;
  const float2* turns;
  u16* x;            // [R][H]
  u16* activated;    // [R][F]
  float* residual;   // [R][H]
  float* queries;    // [R][H]
  float* partials;   // [R][heads][most splits][HEAD_DIM + 2]
  float* squares;    // [2][most_rows][MOST_PARTIALS]: before the first product of a layer, and before the third
  int* arrived;      // of the barrier; zero at the start
  Rows rows;
  u64 layer_elements;  // of keys
  int row_tiles[4], k_blocks[4];
  int count, heads, window, hidden, feed_forward, most_splits, first_squares, most_rows, slice_blocks;
  float eps, inverse_hidden, softmax_scale;
  Newest* newest;     // KV8: [2][most_rows][heads][HEAD_DIM]: keys, values
  float* key_scales;  // KV8: [LAYERS][slot][head][window]
  float* value_scales;
#if LORA
  u64 lora_layer;             // bytes of an adapter's tiles for a layer
  u64 lora_a[4], lora_b[4];   // of each product, in its layer
  int lora_outputs[4];
  LowRank lora;
#endif
};

extern __shared__ __align__(128) u8 shared[];
#define TABLE_BYTES (WIDE ? 65536 : 32768)
#define RING_BYTES (WARPS * STAGES * PAIR_BYTES)
#define SUM_FLOATS (PARTS * 16 * COLUMNS)

// What `finish` needs to know of the product at hand.
struct Now {
  float* residual;
  float* squares_out;
  const u16* norm;
  u16* x_out;
  float* out;
  Newest* keys;
  Newest* values;
  const float2* turns;
  const float* bias;
  Rows rows;
  int epilogue, outputs, heads, kv_heads, head_dim, window;
};

__device__ __forceinline__ void wait_for_all(int* arrived, int& target) {
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

// Where a warp is in what it fetches: through the items of a product, then of the next, to the end of the step.
struct Cursor {
  const u8* source;
  size_t jump;  // from the end of this warp's part of an item to that of the block's next item
  int product, items_left, pairs_left, pairs, stage;
};

__device__ __forceinline__ void enter(const Layers& p, Cursor& next, int warp, int lane) {
  const int kind = next.product & 3, pairs = p.k_blocks[kind] / 2, first = warp * pairs / WARPS;
  next.pairs = next.pairs_left = (warp + 1) * pairs / WARPS - first;
  next.items_left = (p.row_tiles[kind] - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
  next.jump = ((size_t)gridDim.x * pairs - next.pairs) * PAIR_BYTES;
  next.source = p.tiles[next.product] + ((size_t)blockIdx.x * pairs + first) * PAIR_BYTES + lane * 16;
}

__device__ __forceinline__ void fetch(const Layers& p, Cursor& next, u32 ring, int warp, int lane) {
  if (next.product < LAYERS * 4) {
    const u32 target = ring + next.stage * PAIR_BYTES + lane * 16;
    copy_16_async(target, next.source);
    copy_16_async(target + 512, next.source + 512);
    if (lane < 2) copy_16_async(target + 1024, next.source + 1024);
    next.source += PAIR_BYTES;
    if (--next.pairs_left == 0) {
      next.pairs_left = next.pairs;
      next.source += next.jump;
      if (--next.items_left == 0 && ++next.product < LAYERS * 4) enter(p, next, warp, lane);
    }
  }
  next.stage = next.stage + 1 == STAGES ? 0 : next.stage + 1;
  commit_copies();
}

__device__ __forceinline__ u32 pair_of(const u8* table, u32 word, int which, u32 lane_offset) {
#if WIDE
  return *(const u32*)(table + __byte_perm(word, lane_offset, 0x5504 | which << 4));
#else
  const u32 shifted = which == 0 ? word << 7 : word >> (8 * which - 7);
  return *(const u32*)(table + ((shifted & 0x7f80u) | lane_offset));
#endif
}

// 16 x 64 weights times this lane's part of x, unscaled.
__device__ __forceinline__ void multiply(float (&d)[4], const uint4& c, const uint4& x0, const uint4& x1, const u8* table, u32 lane_offset) {
  const u32 upper[2] = {c.x, c.y}, lower[2] = {c.z, c.w}, b[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
#pragma unroll
  for (int step = 0; step < 4; step++) {
    const int half = step >> 1, byte = (step & 1) * 2;
    mma_16x8x16(d, pair_of(table, upper[half], byte, lane_offset), pair_of(table, lower[half], byte, lane_offset),
                pair_of(table, upper[half], byte + 1, lane_offset), pair_of(table, lower[half], byte + 1, lane_offset), b[2 * step],
                b[2 * step + 1]);
  }
}

#if KV8
// Those of this step's keys and values that lie in a stretch, into the cache. Stretches that share a position write the same to it, so
// that none need wait for another.
__device__ __forceinline__ void settle(const Layers& p, size_t first, int slot, int head, int begin, int end) {
  const int row = threadIdx.x >> 6, is_value = threadIdx.x >> 5 & 1;
  if (row >= ROWS || p.rows.slots[row] != slot) return;
  const int position = p.rows.positions[row];
  if (position < begin || position >= end) return;
  const Newest* newest = p.newest + (((size_t)is_value * p.most_rows + row) * p.heads + head) * HEAD_DIM;
  const size_t at = first + position;
  keep_newest<HEAD_DIM>(newest, (is_value ? p.values : p.keys) + at * HEAD_DIM, (is_value ? p.value_scales : p.key_scales) + at);
}
#endif

// What is attended to at once: a split (see splits_of) of one row's and head's positions.
struct Stretch {
  int row, slot, head, split, begin, end;  // row: ROWS behind the last
};

// Of all rows' stretches the one of that number.
__device__ __forceinline__ Stretch stretch_of(const Layers& p, int number) {
  for (int row = 0; row < ROWS; row++) {
    const int slot = p.rows.slots[row], length = p.rows.positions[row] + 1, splits = slot < 0 ? 0 : splits_of(length, p.most_splits);
    if (number < p.heads * splits) {
      const int split = number % splits, chunk = (length + splits - 1) / splits, begin = split * chunk;
      return {row, slot, number / splits, split, begin, min(length, begin + chunk)};
    }
    number -= p.heads * splits;
  }
  return {ROWS, -1, 0, 0, 0, 0};
}

// Softmax-weighted values of a stretch, all warps together; not yet divided by the weights' sum.
__device__ void attend(const Layers& p, int layer, float* scratch) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, side = lane >> 4, d = (lane & 15) * 8;
  constexpr int UNROLL = KV8 && !LORA ? 8 : 4, STRIDE = ALL_WARPS * 2 * UNROLL;
  float* const tops = scratch + ALL_WARPS * HEAD_DIM;
  float* const totals = tops + ALL_WARPS;
  for (int number = blockIdx.x;; number += gridDim.x) {
    const Stretch stretch = stretch_of(p, number);
    const int row = stretch.row, head = stretch.head, begin = stretch.begin, end = stretch.end;
    if (row == ROWS) return;
    const size_t base = layer * p.layer_elements + ((size_t)stretch.slot * p.heads + head) * p.window * HEAD_DIM;
#if KV8
    settle(p, base / HEAD_DIM, stretch.slot, head, begin, end);
    __syncthreads();
#endif
    float q[8], out[8] = {}, top = -1e30f, total = 0.0f;
    const float4* query = (const float4*)(p.queries + ((size_t)row * p.heads + head) * HEAD_DIM + d);
    const float4 q0 = __ldcg(query), q1 = __ldcg(query + 1);
    q[0] = q0.x, q[1] = q0.y, q[2] = q0.z, q[3] = q0.w, q[4] = q1.x, q[5] = q1.y, q[6] = q1.z, q[7] = q1.w;
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] *= p.softmax_scale;
    for (int first = begin + warp * 2 * UNROLL + side; first - side < end; first += STRIDE) {
      Eight k[UNROLL], v[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int position = min(first + u * 2, end - 1);
        const size_t at = base + (size_t)position * HEAD_DIM + d, scale = base / HEAD_DIM + position;
        k[u] = eight_of(p.keys + at, p.key_scales + scale, true);
        v[u] = eight_of(p.values + at, p.value_scales + scale, true);
      }
      float score[UNROLL], highest = top;
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        float key[8];
        unfold(k[u], key);
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) dot += q[i] * key[i];
#pragma unroll
        for (int offset = 8; offset > 0; offset >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, offset);
        score[u] = first + u * 2 < end ? dot * scale_of(k[u]) : -1e30f;
        highest = fmaxf(highest, score[u]);
      }
      const float shrink = exp2f(top - highest);
      top = highest, total = __fmul_rn(total, shrink);
#pragma unroll
      for (int i = 0; i < 8; i++) out[i] = __fmul_rn(out[i], shrink);
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const float weight = first + u * 2 < end ? exp2f(score[u] - top) : 0.0f;
        const float factor = weight * scale_of(v[u]);
        float value[8];
        unfold(v[u], value);
        total += weight;
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = __fmaf_rn(factor, value[i], out[i]);
      }
    }
    {  // the two sides of a warp had every other position
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
    if (side == 0) {
      *(float4*)(scratch + warp * HEAD_DIM + d) = make_float4(out[0], out[1], out[2], out[3]);
      *(float4*)(scratch + warp * HEAD_DIM + d + 4) = make_float4(out[4], out[5], out[6], out[7]);
      if (lane == 0) tops[warp] = top, totals[warp] = total;
    }
    __syncthreads();
    if (threadIdx.x < HEAD_DIM) {
      float highest = -1e30f, sum = 0.0f, value = 0.0f;
#pragma unroll
      for (int w = 0; w < ALL_WARPS; w++) highest = fmaxf(highest, tops[w]);
#pragma unroll
      for (int w = 0; w < ALL_WARPS; w++) {
        const float factor = exp2f(tops[w] - highest);
        sum += totals[w] * factor;
        value += scratch[w * HEAD_DIM + threadIdx.x] * factor;
      }
      float* const to = p.partials + (((size_t)row * p.heads + head) * p.most_splits + stretch.split) * (HEAD_DIM + 2);
      to[threadIdx.x] = value;
      if (threadIdx.x == 0) to[HEAD_DIM] = highest, to[HEAD_DIM + 1] = sum;
    }
    __syncthreads();
  }
}

// Eight dimensions of what a row attended to, its splits joined in their order.
__device__ __forceinline__ uint4 attended(const Layers& p, int row, int k) {
  const int splits = splits_of(p.rows.positions[row] + 1, p.most_splits);
  const int head = k / HEAD_DIM, d = k % HEAD_DIM;
  const float* from = p.partials + ((size_t)row * p.heads + head) * p.most_splits * (HEAD_DIM + 2);
  float highest = -1e30f, sum = 0.0f, value[8] = {};
  for (int i = 0; i < splits; i++) highest = fmaxf(highest, __ldcg(from + i * (HEAD_DIM + 2) + HEAD_DIM));
  for (int i = 0; i < splits; i++) {
    const float* split = from + i * (HEAD_DIM + 2);
    const float factor = exp2f(__ldcg(split + HEAD_DIM) - highest);
    sum += __ldcg(split + HEAD_DIM + 1) * factor;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 two = __ldcg((const float2*)(split + d) + j);
      value[2 * j] += two.x * factor, value[2 * j + 1] += two.y * factor;
    }
  }
  const float scale = 1.0f / sum;
  return make_uint4(floats_to_bf16x2(value[0] * scale, value[1] * scale), floats_to_bf16x2(value[2] * scale, value[3] * scale),
                    floats_to_bf16x2(value[4] * scale, value[5] * scale), floats_to_bf16x2(value[6] * scale, value[7] * scale));
}

// This warp's blocks of x, as its lanes take them: [block][2][ROWS][4] 16 bytes.
__device__ __forceinline__ void fill(const Layers& p, int kind, uint4* x_of_warp, int k0, int k1, int lane) {
  const u16* source = kind == DOWN ? p.activated : p.x;
  const int columns = p.k_blocks[kind] * 64, units = (k1 - k0) * 8;
#pragma unroll
  for (int row = 0; row < ROWS; row++) {
    for (int i = lane; i < units; i += 32) {
      const int k = k0 * 64 + i * 8;
      const uint4 v = kind == OUT ? attended(p, row, k) : __ldcg((const uint4*)(source + (size_t)row * columns + k));
      x_of_warp[((i >> 3) * 2 + (i & 1)) * ROWS * 4 + row * 4 + (i >> 1 & 3)] = v;
    }
  }
}

__device__ __forceinline__ Now now(const Layers& p, int layer, int kind) {
  Now n;
  n.residual = p.residual;
  n.squares_out = p.squares + (kind == OUT ? (size_t)p.most_rows * MOST_PARTIALS : 0);
  n.norm = kind == OUT || kind == DOWN ? p.norms[layer * 2 + (kind == DOWN)] : nullptr;
  n.x_out = kind == GATE_UP ? p.activated : p.x;
  n.out = p.queries;
#if KV8
  n.keys = p.newest;
  n.values = p.newest + (size_t)p.most_rows * p.heads * HEAD_DIM;
#else
  n.keys = p.keys + layer * p.layer_elements;
  n.values = p.values + layer * p.layer_elements;
#endif
  n.turns = p.turns;
  n.bias = kind == QKV ? p.biases[layer] : nullptr;
  n.rows = p.rows;
  n.epilogue = kind == QKV ? ROTATE_AND_CACHE : kind == GATE_UP ? SILU_TIMES_UP : ADD_TO_RESIDUAL;
  n.outputs = kind == GATE_UP ? p.feed_forward : p.hidden;
  n.heads = n.kv_heads = p.heads;
  n.head_dim = HEAD_DIM;
  n.window = p.window;
  return n;
}

#if LORA
__device__ __forceinline__ LowRankPart low_rank_part(const Layers& p, int product) {
  const int kind = product & 3;
  const size_t layer = (product >> 2) * p.lora_layer;
  const int sharing = min((int)gridDim.x, (p.row_tiles[kind] + 1) / 2);  // as product.cu has it, whose blocks may take two tiles at once
  return {layer + p.lora_a[kind], layer + p.lora_b[kind], product, p.lora_outputs[kind], p.k_blocks[kind], sharing};
}

// What the adapters add to a product's items, as one more part of their sums. A warp has one of the two buffers of sums for good: it
// has then waited for each time that the buffer became free, of which a barrier can tell apart two in succession only.
__device__ void add_low_rank(const Layers& p, int product, const uint4* x_of_warps, const LowRankShared* shared, u8* shared_a, float* sums,
                             u64* full, u64* free, int& number, int thread) {
  const LowRankPart part = low_rank_part(p, product);
  const int kind = product & 3, pairs = part.blocks / 2, items = p.row_tiles[kind], lane = thread & 31;
  const int warp = thread >> 5;
  int mine = (warp - number) & 1;  // of the block's items, and then every second
  const int item_of_mine = warp < 2 ? blockIdx.x + mine * gridDim.x : items;
  Up next = tile_of_b(part, shared->groups[0], min(item_of_mine, items - 1), lane);
  add_down<1>(p.lora, part, ROWS, shared, shared_a, thread, [&](int block, int half, int column) {
    const int warp = min(WARPS - 1, ((block / 2 + 1) * WARPS - 1) / pairs), first = warp * pairs / WARPS * 2;
    const uint4* x = x_of_warps + (size_t)warp * p.slice_blocks * 8 * ROWS;
    return column < ROWS ? x[((block - first) * 2 + half) * ROWS * 4 + column * 4 + (lane & 3)] : make_uint4(0, 0, 0, 0);
  });
  take_down(p.lora, part, ROWS, shared, thread);
  if (product + 1 < LAYERS * 4) prefetch_down(p.lora, low_rank_part(p, product + 1), shared, shared_a, thread);
  for (int item = item_of_mine; item < items; item += 2 * gridDim.x, mine += 2) {
    const int of_head = item / (HEAD_DIM / 16) / p.heads * LORA;  // of q, k or v
    const int first = kind == QKV ? of_head : 0, second = kind == GATE_UP ? LORA : first;
    float d[1][4] = {};
    for (int i = 0; i < shared->count; i++) {
      const Up up = i ? tile_of_b(part, shared->groups[i], item, lane) : next;
      multiply_up<1>(p.lora, shared, up, shared->groups[i].rows, first, second, lane, d);
    }
    next = tile_of_b(part, shared->groups[0], min(item + 2 * (int)gridDim.x, items - 1), lane);
    const int at = number + mine, buffer = at & 1;
    if (at >= 2) barrier_wait(free + buffer, ((at >> 1) + 1) & 1);
    float* const to = sums + buffer * SUM_FLOATS + (WARPS * 16 + (lane >> 2)) * COLUMNS + SUM_COLUMN(lane >> 2, 2 * (lane & 3));
    *(float2*)to = make_float2(d[0][0], d[0][1]);
    *(float2*)(to + 8 * COLUMNS) = make_float2(d[0][2], d[0][3]);
    __syncwarp();
    if (lane == 0) barrier_arrive(full + buffer);
  }
  number += (items - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) layers(const __grid_constant__ Layers p) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  u8* const table = shared;
  float* const absmax_code = (float*)(shared + TABLE_BYTES);
  u8* const ring_bytes = shared + TABLE_BYTES + 1024 + (size_t)warp * STAGES * PAIR_BYTES;
  const u32 ring = (u32)__cvta_generic_to_shared(ring_bytes);
  float* const sums = (float*)(shared + TABLE_BYTES + 1024 + RING_BYTES);
  float* const scales = sums + 2 * SUM_FLOATS;
  u64* const full = (u64*)(scales + COLUMNS);
  u64* const free = full + 2;
  uint4* const zeros = (uint4*)(free + 2);  // what lanes without a row multiply with
  uint4* const x_of_warp = zeros + 1 + (size_t)warp * p.slice_blocks * 8 * ROWS;
#if LORA
  LowRankShared* const low_rank = (LowRankShared*)(zeros + 1 + (size_t)WARPS * p.slice_blocks * 8 * ROWS);
  u8* const shared_a = (u8*)(low_rank + 1);
#endif

  let_next_begin();
  Cursor next = {};
  if (warp < WARPS) {
    enter(p, next, warp, lane);
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch(p, next, ring, warp, lane);
  }
  if (threadIdx.x < 2) {
    barrier_make(full + threadIdx.x, PARTS);
    barrier_make(free + threadIdx.x, 1);
  }
  if (threadIdx.x == 0) *zeros = make_uint4(0, 0, 0, 0);
#if LORA
  if (warp == WARPS) find_groups(p.lora, ROWS, low_rank, shared_a + p.lora.prefetched * LORA_BLOCK, COLUMNS, lane);
#endif
  for (int i = threadIdx.x; i < 2048; i += THREADS) {
    const u32 pair = floats_to_bf16x2(p.code[i >> 7], p.code[(i >> 3) & 15]);
    *(uint4*)(table + (i >> 3) * (WIDE ? 256 : 128) + (i & 7) * 16) = make_uint4(pair, pair, pair, pair);
  }
  for (int i = threadIdx.x; i < 256; i += THREADS) absmax_code[i] = p.code[16 + i];
  __syncthreads();
  wait_for_previous();
#if LORA
  const int low_rank_thread = (int)threadIdx.x - WARPS * 32;  // negative: none of theirs
  if (low_rank_thread >= 0) prefetch_down(p.lora, low_rank_part(p, 0), low_rank, shared_a, low_rank_thread);
#endif

  int stage = 0, number = 0, target = 0, partial_count = p.first_squares;
  for (int product = 0; product < LAYERS * 4; product++) {
    const int kind = product & 3, layer = product >> 2, items = p.row_tiles[kind], pairs = p.k_blocks[kind] / 2;
    if (product) wait_for_all(p.arrived, target);
    if (kind == OUT) {
      attend(p, layer, sums);
      wait_for_all(p.arrived, target);
    }
    const int k0 = warp * pairs / WARPS * 2, k1 = (warp + 1) * pairs / WARPS * 2;
    if (warp < WARPS) fill(p, kind, x_of_warp, k0, k1, lane);
    if (warp < ROWS) {
      float total = 0.0f;
      const bool normed = kind == QKV || kind == GATE_UP;
      const float* partial = p.squares + ((size_t)(kind == GATE_UP ? p.most_rows : 0) + warp) * MOST_PARTIALS;
      if (normed)
#pragma unroll 8
        for (int i = lane; i < partial_count; i += 32) total += __ldcg(partial + i);
      total = warp_sum(total);
      if (lane == 0) scales[warp] = normed ? rsqrtf(total * p.inverse_hidden + p.eps) : 1.0f;
    }
#if LORA
    __syncthreads();  // all of x is there
    if (low_rank_thread >= 0) add_low_rank(p, product, zeros + 1, low_rank, shared_a, sums, full, free, number, low_rank_thread);
#else
    __syncwarp();
#endif
    const Now n = now(p, layer, kind);
    const float4* const nested_rows = p.nested[product] + (lane & 15);
    float4 nested = nested_rows[min((int)blockIdx.x, items - 1) * 16];
    for (int item = warp < WARPS ? blockIdx.x : items; item < items; item += gridDim.x, number++) {
      const float4 nested_later = nested_rows[min(item + (int)gridDim.x, items - 1) * 16];
      float acc[4] = {};
      const uint4* x = g < ROWS ? x_of_warp + g * 4 + t : zeros;
      const int step = g < ROWS ? ROWS * 4 : 0;
      for (int block = k0; block < k1; block += 2) {
        wait_copies_but<STAGES - 2>();
        __syncwarp();
        const u8* const at = ring_bytes + stage * PAIR_BYTES;
        const uint4 codes0 = *(const uint4*)(at + lane * 16), codes1 = *(const uint4*)(at + 512 + lane * 16);
        const uint4 x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step];
        x += 4 * step;
        const float absmax = block + (lane >> 4) < (int)nested.z ? nested.x : nested.y;
        const float scale = __fadd_rn(__fmul_rn(absmax_code[at[1024 + lane]], absmax), nested.w);
        float d0[4] = {}, d1[4] = {};
        multiply(d0, codes0, x0, x1, table, lane * 4);
        multiply(d1, codes1, x2, x3, table, lane * 4);
        const float upper0 = __shfl_sync(0xffffffffu, scale, g), lower0 = __shfl_sync(0xffffffffu, scale, g + 8);
        const float upper1 = __shfl_sync(0xffffffffu, scale, g + 16), lower1 = __shfl_sync(0xffffffffu, scale, g + 24);
        acc[0] += d0[0] * upper0, acc[1] += d0[1] * upper0, acc[2] += d0[2] * lower0, acc[3] += d0[3] * lower0;
        acc[0] += d1[0] * upper1, acc[1] += d1[1] * upper1, acc[2] += d1[2] * lower1, acc[3] += d1[3] * lower1;
        fetch(p, next, ring, warp, lane);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
      }
      nested = nested_later;
      const int buffer = number & 1, round = number >> 1;
      float* const item_sums = sums + buffer * SUM_FLOATS;
      if (number >= 2) barrier_wait(free + buffer, (round + 1) & 1);
      float* const to = item_sums + warp * 16 * COLUMNS + g * COLUMNS + SUM_COLUMN(g, 2 * t);
      *(float2*)to = make_float2(acc[0], acc[1]);
      *(float2*)(to + 8 * COLUMNS) = make_float2(acc[2], acc[3]);
      __syncwarp();
      if (lane == 0) barrier_arrive(full + buffer);
      if (warp != number % WARPS) continue;  // the warps finish items in turn
      barrier_wait(full + buffer, round & 1);
      const int r = lane % 8, column = lane / 8;  // eight lanes have a row's outputs
      const bool is_there = column < ROWS && p.rows.slots[column] >= 0;
      float square = 0.0f;
      if (is_there) {
        const float* from = item_sums + r * COLUMNS + SUM_COLUMN(r, column);
        float v0 = 0.0f, v1 = 0.0f;
#pragma unroll
        for (int w = 0; w < PARTS; w++) v0 += from[w * 16 * COLUMNS], v1 += from[(w * 16 + 8) * COLUMNS];
        square = finish(n, item, r, column, v0, v1, scales[column]);
      }
      leave_squares(n, item, r, column, is_there, square);
      __syncwarp();
      if (lane == 0) barrier_arrive(free + buffer);
    }
    if (n.epilogue == ADD_TO_RESIDUAL) partial_count = items;
  }
}

// y = W x for 1 to 64 rows, W in tiles of 16 outputs, fused with the epilogue that follows the product in a decoder layer.
//
// One persistent block per SM. Its WARPS share each item (RT tiles) by splitting K. Each fetches its part of the tiles through its own
// ring in shared memory, which continues across items and is filled before the previous kernel has ended. Warps do not wait for each
// other: each stores its partial sums and goes on, and a few of them, in turn, add up an item and finish it.
// The weights are the mma's 16-row operand, the rows of x its 8 columns (CT times), so eight chats cost what one does.
// NF4 bytes become pairs of bf16 through nf4_table.cuh; sums over a block of 64 are scaled in fp32.
//
// Compiled for WEIGHTS (0 NF4, 1 bf16, 2 int8), CT, RT, PAIRED (1: a stage of the ring holds two blocks of K instead of one),
// X_SHARED (1: x is copied to shared memory), READ_AHEAD (1: x is read from global memory, a block ahead), STAGES, BUFFERS (of items'
// sums), WIDE (see nf4_table.cuh), WARPS (that multiply with the weights), LORA (rank of the unmerged adapters, which have extra
// warps; 0: none) and KV8 (see kv_cache.cuh). Lane: g = lane / 4, t = lane % 4.
#include "common.cuh"
#include "kv_cache.cuh"
#include "epilogue.cuh"
#if LORA
#define LORA_WARPS 4
#include "lora.cuh"
#endif

#define NF4 0
#define BF16 1
#define INT8 2

#if LORA
#define ALL_WARPS (WARPS + LORA_WARPS)
#define PARTS (WARPS + 1)                 // of an item's sums: the adapters' is one more
#define ARRIVALS (WARPS + RT)             // at an item: one adapter warp for each of its tiles
#else
#define ALL_WARPS WARPS
#define PARTS WARPS
#define ARRIVALS WARPS
#endif
#define THREADS (ALL_WARPS * 32)
#define COLUMNS (8 * CT)

#if WEIGHTS == NF4
#define BLOCK_K 64     // columns of a tile
#define TILE_BYTES 528 // 16 x 64 nibbles, lane by lane, then 16 bytes of absmax codes
#elif WEIGHTS == BF16
#define BLOCK_K 32
#define TILE_BYTES 1024
#else
#define BLOCK_K 64
#define TILE_BYTES 1024
#endif
#define MMA_STEPS (BLOCK_K / 16)

struct Product {
  const u8* tiles;         // [row tiles][k blocks][TILE_BYTES]
  const float4* nested;    // NF4: [row tiles * 16] {absmax of the row's first blocks, of its later ones, first later block, offset}
  const float* code;       // NF4: [16] then [256] for the absmax codes
  const float* row_scales; // INT8: [row tiles * 16]
  const float* bias;       // [row tiles * 16] or null
  const u16* x;            // [R][K] bf16
  const float* squares_in; // [R][MAX_PARTIALS] partial sums of squares of x before its norm; null: no norm
  float* squares_out;      // the same of the residual, one per row tile
  float* residual;         // [R][H]
  const u16* norm;         // [H] weight of the norm that comes next
  u16* x_out;              // [R][outputs] bf16
  float* out;              // [R][outputs]: queries or logits
  NewElement* keys;        // this layer's cache [slot][kv head][window][D] bf16; KV8: [R][kv head][D]
  NewElement* values;
  const float2* rope_cos_sin;  // [window][D / 2]
  Rows rows;
  int row_tiles, k_blocks, outputs, count;  // count: rows in this step
  int squares_count;                        // partial sums per row in squares_in
  int epilogue, heads, kv_heads, head_dim, window;
  float eps, inverse_hidden;
#if LORA
  Lora lora;
  LoraProduct lora_product;
#endif
};

extern __shared__ __align__(128) u8 shared[];

#if WEIGHTS == NF4
#include "nf4_table.cuh"
#else
#define TABLE_BYTES 0
#define CODE_BYTES 0
#endif
#define BLOCKS (PAIRED + 1)          // of K in a stage
#define TILES (RT * BLOCKS)          // in a stage: the same block of RT row tiles, or two blocks of one
#define RECORD (BLOCKS * TILE_BYTES)  // of one row tile in a stage; NF4: all codes, then all absmax codes
#define RING_BYTES (WARPS * STAGES * TILES * TILE_BYTES)
#define SUM_STRIDE (COLUMNS + (CT > 1 ? 8 : 0))
#define SUM_FLOATS (PARTS * RT * 16 * SUM_STRIDE)
#define PAIRS (RT * 8 * COLUMNS)     // outputs r and r + 8 of a tile
#define FINISHERS (PAIRS / 32 > WARPS ? WARPS : PAIRS / 32)  // warps that finish an item
#define LOOPS ((PAIRS / 32 + FINISHERS - 1) / FINISHERS)

// A warp's position in the weights it fetches: its blocks of an item, then those of the thread block's next item.
struct Cursor {
  const u8* source;  // this lane's 16 bytes of the first tile
  int item, block, stage;
};

__device__ __forceinline__ void fetch(const Product& p, Cursor& next, u32 ring, int items, int k0, int k1, int lane) {
  if (next.item < items) {
    const u32 target = ring + next.stage * TILES * TILE_BYTES;
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
      const int offset = RT == 1 ? 0 : min(rt, p.row_tiles - 1 - next.item * RT);  // a last item may have fewer tiles
      const u8* source = next.source + (size_t)offset * p.k_blocks * TILE_BYTES;
#pragma unroll
      for (int i = 0; i < RECORD / 512; i++) copy_16_async(target + rt * RECORD + i * 512 + lane * 16, source + i * 512);
      if (RECORD % 512 && lane < RECORD % 512 / 16)
        copy_16_async(target + rt * RECORD + RECORD / 512 * 512 + lane * 16, source + RECORD / 512 * 512);
    }
    next.source += RECORD;
    next.block += BLOCKS;
    if (next.block == k1) {
      next.block = k0;
      next.item += gridDim.x;
      next.source += ((size_t)gridDim.x * RT * p.k_blocks - (k1 - k0)) * TILE_BYTES;
    }
  }
  next.stage = next.stage + 1 == STAGES ? 0 : next.stage + 1;
  commit_copies();
}

#if WEIGHTS == NF4
#if !PAIRED && (RT > 2 || READ_AHEAD)
#error "single blocks have scales for two tiles, and no block to read ahead"
#endif
#define SCALES ((TILES + 1) / 2)  // that a lane computes per stage
// Load the nested absmax factors of this lane's row of an item.
__device__ __forceinline__ float4 nested_of(const Product& p, int item, int i, int lane) {
  const int tile = item * RT + (PAIRED ? i : RT > 1 ? lane >> 4 : 0);
  return p.nested[min(tile, p.row_tiles - 1) * 16 + (lane & 15)];
}
#endif

// Four registers of the mma's 16 x 16 operand.
struct Operand {
  u32 a[4];
};

#if WEIGHTS == NF4
__device__ __forceinline__ Operand operand(const uint4& c, int step, const u8* table, u32 lane_offset) {
  const u32 upper = step < 2 ? c.x : c.y, lower = step < 2 ? c.z : c.w;
  const int byte = (step & 1) * 2;
  return {dequantize_pair(table, upper, byte, lane_offset), dequantize_pair(table, lower, byte, lane_offset), dequantize_pair(table, upper, byte + 1, lane_offset),
          dequantize_pair(table, lower, byte + 1, lane_offset)};
}
#elif WEIGHTS == INT8
// Two int8 of `word` (bytes `which`, `which + 1`) as bf16: 128 + low seven bits, less 128 or, where the sign bit is set, 256.
__device__ __forceinline__ u32 int8_pair(u32 word, int which) {
  const u32 spread = __byte_perm(word, 0, which ? 0x4342 : 0x4140);  // bytes 4-7 of the pair are zero
  const u32 value = (spread & 0x007f007fu) | 0x43004300u, bias = (spread & 0x00800080u) | 0x43004300u;
  u32 result;
  asm("{.reg .b32 one; mov.b32 one, 0xbf80bf80; fma.rn.bf16x2 %0, %1, one, %2;}" : "=r"(result) : "r"(bias), "r"(value));
  return result;
}
#endif

#if LORA
// Compute what the adapters add to this block's items, as one more part of their sums; the first RT warps have one tile of each item.
__device__ void add_lora(const Product& p, const LoraShared* shared, const u8* shared_a, float* sums, u64* full, u64* free, int thread) {
  const int columns = p.k_blocks * BLOCK_K, items = (p.row_tiles + RT - 1) / RT, lane = thread & 31, rt = thread >> 5;
  const auto tile_of = [&](int item) { return min(item * RT + rt, p.row_tiles - 1); };
  BTile next = load_b_tile(p.lora_product, shared->groups[0], tile_of(blockIdx.x), lane);
  multiply_a<CT>(p.lora, p.lora_product, shared->shares[0], p.count, shared, shared_a, thread, [&](int block, int half, int column) {
    const u16* x = p.x + (size_t)column * columns + block * 64 + (lane & 3) * 16 + half * 8;
    return column < p.count ? *(const uint4*)x : make_uint4(0, 0, 0, 0);
  });
  collect_ax(p.lora, p.lora_product, shared->shares[0], p.count, shared, thread);
  if (rt >= RT) return;
  int number = 0;
  for (int item = blockIdx.x; item < items; item += gridDim.x, number++) {
    const int tile = tile_of(item), head = tile / (p.head_dim / 16);
    const int of_head = head < p.heads ? 0 : head < p.heads + p.kv_heads ? LORA : 2 * LORA;
    const int first = p.epilogue == ROPE_AND_CACHE || p.epilogue == STORE_QKV ? of_head : 0, second = p.epilogue == SILU_TIMES_UP ? LORA : first;
    float d[CT][4] = {};
    for (int i = 0; i < shared->count; i++) {
      const BTile b_tile = i ? load_b_tile(p.lora_product, shared->groups[i], tile, lane) : next;
      multiply_b<CT>(p.lora, shared, b_tile, shared->groups[i].rows, first, second, lane, d);
    }
    next = load_b_tile(p.lora_product, shared->groups[0], tile_of(item + gridDim.x), lane);
    const int buffer = number % BUFFERS;
    if (number >= BUFFERS) barrier_wait(free + buffer, (number / BUFFERS + 1) & 1);
#pragma unroll
    for (int ct = 0; ct < CT; ct++) {
      float* const line = sums + buffer * SUM_FLOATS + ((WARPS * RT + rt) * 16 + (lane >> 2)) * SUM_STRIDE;
      float* const to = line + ct * 8 + SUM_COLUMN(lane >> 2, 2 * (lane & 3));
      *(float2*)to = make_float2(d[ct][0], d[ct][1]);
      *(float2*)(to + 8 * SUM_STRIDE) = make_float2(d[ct][2], d[ct][3]);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(full + buffer);
  }
}
#endif

// A block of K of all rows: the mma's 8 columns, CT times.
struct Inputs {
  u32 x[CT][2 * MMA_STEPS];
};
__device__ __forceinline__ void read_inputs(const Product& p, const uint4* x_shared, int block, Inputs& inputs, int g, int t) {
#pragma unroll
  for (int ct = 0; ct < CT; ct++) {
    const int column = ct * 8 + g;
#pragma unroll
    for (int i = 0; i < MMA_STEPS / 2; i++) {
      uint4 v = make_uint4(0, 0, 0, 0);
      if (column < p.count) {
#if X_SHARED
        v = x_shared[((block * (MMA_STEPS / 2) + i) * p.count + column) * 4 + t];
#else
        v = ((const uint4*)(p.x + ((size_t)column * p.k_blocks + block) * BLOCK_K + t * (BLOCK_K / 4)))[i];
#endif
      }
      inputs.x[ct][4 * i] = v.x, inputs.x[ct][4 * i + 1] = v.y, inputs.x[ct][4 * i + 2] = v.z, inputs.x[ct][4 * i + 3] = v.w;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) product(const __grid_constant__ Product p) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#if WEIGHTS == NF4
  u8* const table = shared;
  float* const absmax_code = (float*)(shared + TABLE_BYTES);
#endif
  u8* const ring_bytes = shared + TABLE_BYTES + CODE_BYTES + (size_t)warp * STAGES * TILES * TILE_BYTES;
  const u32 ring = (u32)__cvta_generic_to_shared(ring_bytes);
  float* const sums = (float*)(shared + TABLE_BYTES + CODE_BYTES + RING_BYTES);
  float* const scales = sums + BUFFERS * SUM_FLOATS;  // [COLUMNS] 1 / rms of each row
  u64* const full = (u64*)(scales + COLUMNS);             // [BUFFERS] all warps have stored their sums of an item
  u64* const free = full + BUFFERS;                       // [BUFFERS] the item has been finished
  uint4* const x_shared = (uint4*)(free + BUFFERS);             // [k blocks][2][rows][4] 16 bytes, as the lanes take them
  const int items = (p.row_tiles + RT - 1) / RT;
  const int k0 = warp * (p.k_blocks / BLOCKS) / WARPS * BLOCKS, k1 = (warp + 1) * (p.k_blocks / BLOCKS) / WARPS * BLOCKS;
#if LORA
  LoraShared* const lora_shared = (LoraShared*)(x_shared + (X_SHARED ? (size_t)p.k_blocks * (BLOCK_K / 8) * p.count : 0));
  u8* const shared_a = (u8*)(lora_shared + 1);
  const int lora_thread = (int)threadIdx.x - WARPS * 32;  // negative: not an adapter warp
#endif

  launch_dependents();
  Cursor next = {p.tiles + ((size_t)blockIdx.x * RT * p.k_blocks + k0) * TILE_BYTES + lane * 16, k0 < k1 ? (int)blockIdx.x : items, k0, 0};
  if (warp < WARPS) {
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch(p, next, ring, items, k0, k1, lane);
  }
  if (threadIdx.x < BUFFERS) {
    barrier_init(full + threadIdx.x, ARRIVALS);
    barrier_init(free + threadIdx.x, FINISHERS);
  }
#if WEIGHTS == NF4
  make_table(p.code, table, absmax_code, THREADS);
#endif
#if LORA
  if (warp == WARPS) {
    group_rows(p.lora, p.count, lora_shared, shared_a + p.lora.prefetched * LORA_BLOCK, COLUMNS, lane);
    if (lane == 0) lora_shared->shares[0] = share_of(p.lora_product);
  }
#endif
  __syncthreads();
#if LORA
  if (lora_thread >= 0) prefetch_a(p.lora, p.lora_product, lora_shared->shares[0], lora_shared, shared_a, lora_thread);
#endif
  wait_for_previous();
#if X_SHARED
  if (warp < WARPS) {  // this warp's blocks of x, which no other warp reads
    constexpr int UNITS = BLOCK_K / 8;  // of 16 bytes, per row and block
    const int count = (k1 - k0) * UNITS;
    for (int row = 0; row < p.count; row++) {
      const uint4* source = (const uint4*)p.x + ((size_t)row * p.k_blocks + k0) * UNITS;
      for (int i = lane; i < count; i += 32) {
        const int block = k0 + i / UNITS, of_lane = i % UNITS / (UNITS / 4), part = i % (UNITS / 4);
        x_shared[((block * (UNITS / 4) + part) * p.count + row) * 4 + of_lane] = source[i];
      }
    }
  }
#endif
  for (int column = warp; column < COLUMNS; column += ALL_WARPS) {
    float total = 0.0f;
    if (p.squares_in && column < p.count)
      for (int i = lane; i < p.squares_count; i += 32) total += p.squares_in[column * MAX_PARTIALS + i];
    total = warp_sum(total);
    if (lane == 0) scales[column] = p.squares_in ? rsqrtf(total * p.inverse_hidden + p.eps) : 1.0f;
  }
  __syncwarp();
#if LORA
  if (lora_thread >= 0) add_lora(p, lora_shared, shared_a, sums, full, free, lora_thread);
#endif

  int stage = 0, number = 0;
  Inputs inputs[BLOCKS];
#if READ_AHEAD
  if (warp < WARPS) read_inputs(p, x_shared, k0, inputs[0], g, t);
#endif
#if WEIGHTS == NF4
  float4 nested[SCALES];
#pragma unroll
  for (int i = 0; i < SCALES; i++) nested[i] = nested_of(p, blockIdx.x, i, lane);
#endif
  for (int item = warp < WARPS ? blockIdx.x : items; item < items; item += gridDim.x, number++) {
    float acc[RT][CT][4] = {};
#if WEIGHTS == NF4
    float4 nested_later[SCALES];
#pragma unroll
    for (int i = 0; i < SCALES; i++) nested_later[i] = nested_of(p, min(item + (int)gridDim.x, items - 1), i, lane);
#endif
    for (int first_block = k0; first_block < k1; first_block += BLOCKS) {
      wait_copies_except<STAGES - 2>();
      __syncwarp();
      const u8* const at = ring_bytes + stage * TILES * TILE_BYTES;
#if WEIGHTS == NF4
      float scale[SCALES];  // a lane computes the scale of one row of one of two tiles
#pragma unroll
      for (int i = 0; i < SCALES; i++) {
        const u8* codes = at + (PAIRED ? i * RECORD + 1024 + lane : (RT > 1 ? lane >> 4 : 0) * RECORD + 512 + (lane & 15));
        const float absmax = first_block + (PAIRED ? lane >> 4 : 0) < (int)nested[i].z ? nested[i].x : nested[i].y;
        scale[i] = __fadd_rn(__fmul_rn(absmax_code[*codes], absmax), nested[i].w);
      }
#endif
#pragma unroll
      for (int offset = 0; offset < BLOCKS; offset++) {
        Inputs& b = inputs[offset];
#if READ_AHEAD  // overlaps the next block's load with this one's mma
        const int next_block = first_block + offset + 1;
        read_inputs(p, x_shared, next_block < k1 ? next_block : k0, inputs[1 - offset], g, t);
#else
        read_inputs(p, x_shared, first_block + offset, b, g, t);
#endif
#pragma unroll
        for (int rt = 0; rt < RT; rt++) {
#if WEIGHTS == NF4
          const uint4 codes = *(const uint4*)(at + rt * RECORD + offset * 512 + lane * 16);
          const int tile = rt * BLOCKS + offset;
          const float upper = __shfl_sync(0xffffffffu, scale[tile / 2], tile % 2 * 16 + g);
          const float lower = __shfl_sync(0xffffffffu, scale[tile / 2], tile % 2 * 16 + g + 8);
          float d[CT][4] = {};
#pragma unroll
          for (int step = 0; step < MMA_STEPS; step++) {
            const Operand o = operand(codes, step, table, lane * 4);
#pragma unroll
            for (int ct = 0; ct < CT; ct++) mma_16x8x16(d[ct], o.a[0], o.a[1], o.a[2], o.a[3], b.x[ct][2 * step], b.x[ct][2 * step + 1]);
          }
#pragma unroll
          for (int ct = 0; ct < CT; ct++) {
            acc[rt][ct][0] += d[ct][0] * upper, acc[rt][ct][1] += d[ct][1] * upper;
            acc[rt][ct][2] += d[ct][2] * lower, acc[rt][ct][3] += d[ct][3] * lower;
          }
#elif WEIGHTS == BF16
          const u8* const mine = at + rt * RECORD + offset * TILE_BYTES;
#pragma unroll
          for (int step = 0; step < MMA_STEPS; step++) {
            const uint4 a = *(const uint4*)(mine + step * 512 + lane * 16);
#pragma unroll
            for (int ct = 0; ct < CT; ct++) mma_16x8x16(acc[rt][ct], a.x, a.y, a.z, a.w, b.x[ct][2 * step], b.x[ct][2 * step + 1]);
          }
#else
          const u8* const mine = at + rt * RECORD + offset * TILE_BYTES;
#pragma unroll
          for (int half = 0; half < 2; half++) {  // 512 bytes: two steps; a lane has four bytes of row g and of g + 8 for each
            const uint4 a = *(const uint4*)(mine + half * 512 + lane * 16);
#pragma unroll
            for (int step = 0; step < 2; step++) {
              const u32 first = step ? a.z : a.x, second = step ? a.w : a.y;
              const u32 a0 = int8_pair(first, 0), a2 = int8_pair(first, 1), a1 = int8_pair(second, 0), a3 = int8_pair(second, 1);
#pragma unroll
              for (int ct = 0; ct < CT; ct++)
                mma_16x8x16(acc[rt][ct], a0, a1, a2, a3, b.x[ct][4 * half + 2 * step], b.x[ct][4 * half + 2 * step + 1]);
            }
          }
#endif
        }
      }
      fetch(p, next, ring, items, k0, k1, lane);
      stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
#if WEIGHTS == NF4
#pragma unroll
    for (int i = 0; i < SCALES; i++) nested[i] = nested_later[i];
#endif

    const int buffer = number % BUFFERS, round = number / BUFFERS;
    float* const item_sums = sums + buffer * SUM_FLOATS;
    float* const mine = item_sums + warp * RT * 16 * SUM_STRIDE;
    if (number >= BUFFERS) barrier_wait(free + buffer, (round + 1) & 1);
#pragma unroll
    for (int rt = 0; rt < RT; rt++)
#pragma unroll
      for (int ct = 0; ct < CT; ct++) {
        float* const to = mine + (rt * 16 + g) * SUM_STRIDE + ct * 8 + SUM_COLUMN(g, 2 * t);
        *(float2*)to = make_float2(acc[rt][ct][0], acc[rt][ct][1]);
        *(float2*)(to + 8 * SUM_STRIDE) = make_float2(acc[rt][ct][2], acc[rt][ct][3]);
      }
    __syncwarp();
    if (lane == 0) barrier_arrive(full + buffer);
    const int turn = (warp + WARPS - number * FINISHERS % WARPS) % WARPS;  // the warps finish items in turn
    if (turn >= FINISHERS) continue;
    barrier_wait(full + buffer, round & 1);
#pragma unroll
    for (int loop = 0; loop < LOOPS; loop++) {
      const int pair = (loop * FINISHERS + turn) * 32 + lane;  // eight lanes have a tile's outputs of a row
      const int r = pair % 8, column = pair / 8 % COLUMNS, rt = pair / 8 / COLUMNS, tile = item * RT + rt;
      const bool is_there = rt < RT && column < p.count && tile < p.row_tiles && p.rows.slots[column] >= 0;
      float square = 0.0f;
      if (is_there) {
        const float* from = item_sums + (rt * 16 + r) * SUM_STRIDE + SUM_COLUMN(r, column);
        float v0 = 0.0f, v1 = 0.0f;
#pragma unroll
        for (int w = 0; w < PARTS; w++) {
          v0 += from[w * RT * 16 * SUM_STRIDE];
          v1 += from[(w * RT * 16 + 8) * SUM_STRIDE];
        }
#if WEIGHTS == INT8
        v0 *= p.row_scales[tile * 16 + r];
        v1 *= p.row_scales[tile * 16 + r + 8];
#endif
        square = apply_epilogue(p, tile, r, column, v0, v1, scales[column]);
      }
      store_squares(p, tile, r, column, is_there, square);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(free + buffer);
  }
}

// Dequantize tiles to rows of bf16 for prefill's products: [outputs][K], in the checkpoint's order of outputs.
struct Dequantize {
  const u8* tiles;
  const float4* nested;
  const float* code;
  const float* row_scales;
  const int* row_of;  // [row tiles * 16] row of the checkpoint, -1: padding
  u16* out;
  int row_tiles, k_blocks;
};

extern "C" __global__ void __launch_bounds__(256) dequantize(const __grid_constant__ Dequantize p) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const size_t unit = (size_t)blockIdx.x * 8 + (threadIdx.x >> 5);
  const int tile = (int)(unit / p.k_blocks), block = (int)(unit % p.k_blocks);
#if WEIGHTS == NF4
  __shared__ float code[16 + 256];  // 16 banks; lanes that read the same value share it
  for (int i = threadIdx.x; i < 16 + 256; i += 256) code[i] = p.code[i];
  __syncthreads();
  if (tile >= p.row_tiles) return;
  const u8* record = p.tiles + (unit - (PAIRED ? block & 1 : 0)) * TILE_BYTES;
  const u8* at = record + (PAIRED ? (block & 1) * 512 : 0);
  const u8* absmax_codes = record + (PAIRED ? 1024 + (block & 1) * 16 : 512);
#else
  if (tile >= p.row_tiles) return;
  const u8* at = p.tiles + unit * TILE_BYTES;
#endif
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int r = half * 8 + g, row = p.row_of[tile * 16 + r];
    if (row < 0) continue;
    u32 pairs[BLOCK_K / 8];
#if WEIGHTS == NF4
    const float4 nested = p.nested[tile * 16 + r];
    const float absmax = block < (int)nested.z ? nested.x : nested.y;
    const float scale = __fadd_rn(__fmul_rn(code[16 + absmax_codes[r]], absmax), nested.w);
    const uint2 codes = *(const uint2*)(at + lane * 16 + half * 8);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const u32 byte = ((i < 4 ? codes.x : codes.y) >> (i % 4 * 8)) & 255;
      pairs[i] = floats_to_bf16x2(code[byte >> 4] * scale, code[byte & 15] * scale);
    }
#elif WEIGHTS == BF16
#pragma unroll
    for (int step = 0; step < 2; step++) {
      const uint4 a = *(const uint4*)(at + step * 512 + lane * 16);
      pairs[2 * step] = half ? a.y : a.x;
      pairs[2 * step + 1] = half ? a.w : a.z;
    }
#else
    const float scale = p.row_scales[tile * 16 + r];
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const u32 word = *(const u32*)(at + step / 2 * 512 + lane * 16 + step % 2 * 8 + half * 4);
#pragma unroll
      for (int i = 0; i < 2; i++)
        pairs[2 * step + i] = floats_to_bf16x2((float)(signed char)(word >> (16 * i)) * scale, (float)(signed char)(word >> (16 * i + 8)) * scale);
    }
#endif
    uint4* out = (uint4*)(p.out + ((size_t)row * p.k_blocks + block) * BLOCK_K + t * (BLOCK_K / 4));
#pragma unroll
    for (int i = 0; i < BLOCK_K / 32; i++) out[i] = make_uint4(pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]);
  }
}

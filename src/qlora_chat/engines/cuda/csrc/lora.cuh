// Unmerged LoRA adapters in a decode step (Hu 2021): y = W x + s B (A x), by extra warps of each block. W x never waits for them.
//
// A x needs all of x, so all blocks share it: each multiplies some columns of one tile of A and adds the result to sums in global
// memory. The sums are fixed-point with a unit of 2^-28, so the order of additions does not matter, and their lowest bits count the
// additions, so a reader sees whether a sum is complete. B (A x) is then one more part of an item's sums, like the parts of K that
// the other warps compute. Rows may have different adapters; each adapter's tiles are read once for all of its rows.
//
// Compiled for LORA, the rank: a multiple of 16; the including file defines LORA_WARPS.
#define LORA_THREADS (LORA_WARPS * 32)
#define LORA_STEPS (LORA / 16)
#define LORA_BLOCK 2048           // bytes of A: 16 outputs by 64 inputs, lane by lane, in the order of a lane's inputs in an NF4 tile
#define LORA_TILE (LORA * 32)     // bytes of B: 16 outputs by the rank
#define LORA_ONE 268435456.0f     // 2^28
#define LORA_COUNT_BITS 10
#define LORA_BUFFERS 3            // of sums: in use, being zeroed for the next product, still being read for the previous one
#define LORA_ROWS 64

struct Lora {
  const u8* const* tiles;  // [adapters] of each product A, then B
  const float* scales;     // [adapters]
  const int* row_adapters; // [R] the row's adapter; -1: the base alone
  u64* sums;               // [LORA_BUFFERS][R][stride] A x; zero at the start of a step
  int stride;              // max outputs of A in a product
  int prefetched;          // blocks of A that shared memory holds
};

// One product's part of an adapter.
struct LoraProduct {
  size_t a, b;  // where its A and B begin in an adapter's tiles
  int number;   // of the product in the step
  int outputs;  // of A: rank times the parts of a fused product
  int blocks;   // of 64 inputs
  int sharing;  // thread blocks that share A x, whatever the number of rows; a launch of fewer loops
};

// Rows with the same adapter, as a bit mask.
struct AdapterGroup {
  const u8* tiles;
  u64 rows;
};

// A unit of A x: a tile of 16 outputs and a share of the inputs, about one unit per thread block.
struct Unit {
  int tile, first, last;  // blocks of inputs
};

// A thread block's share of a product's A x; computed ahead, since it takes a dozen divisions.
struct Share {
  Unit unit;   // the first; on a small card a block has more
  int units;   // of all blocks
  u32 shares;  // of the inputs, each of which adds once to every sum
};

// In shared memory, before the prefetched blocks of A.
struct __align__(16) LoraShared {
  AdapterGroup groups[LORA_ROWS];
  Share shares[4];          // of this block in a layer's products
  float scales[LORA_ROWS];  // of the rows, times a sum's unit; 0: the row has no adapter
  int count;                // of groups
  float* parts;             // [LORA_WARPS][16][columns]
  u16* ax;                  // [R][stride] s A x in bf16
};

__device__ __forceinline__ void sync_lora_warps() { asm volatile("bar.sync 1, %0;" ::"n"(LORA_THREADS) : "memory"); }

__device__ __forceinline__ u64 rows_where(bool earlier, bool later) {
  return __ballot_sync(0xffffffffu, earlier) | (u64)__ballot_sync(0xffffffffu, later) << 32;
}

// Group the rows by adapter and place the buffers that follow the blocks of A in `rest`; by one warp, once per kernel.
__device__ __forceinline__ void group_rows(const Lora& l, int count, LoraShared* shared, u8* rest, int columns, int lane) {
  int of_row[2];  // of this lane's row, and of the one 32 further
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int row = lane + i * 32;
    of_row[i] = row < count ? l.row_adapters[row] : -1;
    shared->scales[row] = of_row[i] < 0 ? 0.0f : l.scales[of_row[i]] / LORA_ONE;
  }
  u64 left = rows_where(of_row[0] >= 0, of_row[1] >= 0);
  AdapterGroup none = {l.tiles[0], 0};  // valid memory to prefetch where no row has an adapter
  if (lane == 0) shared->groups[0] = none;
  int found = 0;
  for (; left; found++) {
    const int first = __ffsll((long long)left) - 1, adapter = __shfl_sync(0xffffffffu, first < 32 ? of_row[0] : of_row[1], first & 31);
    const AdapterGroup group = {l.tiles[adapter], rows_where(of_row[0] == adapter, of_row[1] == adapter)};
    if (lane == 0) shared->groups[found] = group;
    left &= ~group.rows;
  }
  if (lane != 0) return;
  shared->count = found;
  shared->parts = (float*)rest;
  shared->ax = (u16*)(shared->parts + LORA_WARPS * 16 * columns);
}

__device__ __forceinline__ int shares_of(const LoraProduct& product) { return max(1, product.sharing / (product.outputs / 16)); }
__device__ __forceinline__ Unit unit_of(const LoraProduct& product, int unit) {
  const int shares = shares_of(product), share = unit % shares;
  return {unit / shares, share * product.blocks / shares, (share + 1) * product.blocks / shares};
}
__device__ __forceinline__ Share share_of(const LoraProduct& product) {
  const int shares = shares_of(product);
  return {unit_of(product, blockIdx.x), product.outputs / 16 * shares, (u32)shares};
}
__device__ __forceinline__ const u8* tiles_of_unit(const LoraProduct& product, const Unit& unit, const AdapterGroup& group) {
  return group.tiles + product.a + ((size_t)unit.tile * product.blocks + unit.first) * LORA_BLOCK;
}

// Start copying this block's share of a product's A, of the first group, to shared memory, as far as it fits.
__device__ __forceinline__ void prefetch_a(const Lora& l, const LoraProduct& product, const Share& share, const LoraShared* shared,
                                              u8* shared_a, int thread) {
  if (shared->count && (int)blockIdx.x < share.units) {
    const Unit unit = share.unit;
    const u8* source = tiles_of_unit(product, unit, shared->groups[0]);
    const u32 target = (u32)__cvta_generic_to_shared(shared_a);
    const int bytes = min(l.prefetched, unit.last - unit.first) * LORA_BLOCK;
    for (int i = thread * 16; i < bytes; i += LORA_THREADS * 16) copy_16_async(target + i, source + i);
  }
  commit_copies();
}

// `parts`: the number of warps whose sums `more` has, which the count grows by.
__device__ __forceinline__ void add_to_sum(u64* sum, float more, int parts) {
  atomicAdd(sum, (u64)(__float2ll_rn(more * LORA_ONE) << LORA_COUNT_BITS) + parts);
}

// Multiply this block's share of A x and add it to the sums. x_of(block, half, column): 8 inputs of a lane, in an NF4 tile's order.
template <int GROUPS, class X>
__device__ __forceinline__ void multiply_a(const Lora& l, const LoraProduct& product, const Share& share, int count, const LoraShared* shared,
                                         const u8* shared_a, int thread, X x_of) {
  constexpr int COLUMNS_OF_PARTS = GROUPS * 8;
  constexpr int AHEAD = GROUPS == 1 ? 3 : 1, HALVES = GROUPS == 1 ? 2 : 1;  // loads of x issued together: one round trip instead of six
  const int warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;
  u64* const sums = l.sums + (size_t)(product.number % LORA_BUFFERS) * count * l.stride;
  u64* const zeros = l.sums + (size_t)((product.number + 1) % LORA_BUFFERS) * count * l.stride;
  Unit unit = share.unit;
  wait_copies_except<0>();
  sync_lora_warps();
  for (int at = blockIdx.x; at < share.units;) {
    for (int i = 0; i < shared->count; i++) {
      const AdapterGroup group = shared->groups[i];
      const u8* const source = tiles_of_unit(product, unit, group) + lane * 16;
      float d[GROUPS][4] = {};
      for (int first = unit.first + warp; first < unit.last; first += LORA_WARPS * AHEAD) {
#pragma unroll
        for (int half = 0; half < 2; half += HALVES) {
          uint4 x[AHEAD][HALVES][GROUPS];
#pragma unroll
          for (int j = 0; j < AHEAD * HALVES * GROUPS; j++) {
            const int ahead = j / GROUPS / HALVES, block = first + ahead * LORA_WARPS;
            x[ahead][j / GROUPS % HALVES][j % GROUPS] =
                block < unit.last ? x_of(block, half + j / GROUPS % HALVES, j % GROUPS * 8 + g) : make_uint4(0, 0, 0, 0);
          }
#pragma unroll
          for (int j = 0; j < AHEAD * HALVES; j++) {
            const int ahead = j / HALVES, of_unit = first + ahead * LORA_WARPS - unit.first;
            if (unit.first + of_unit >= unit.last) break;
            const bool is_here = at == blockIdx.x && i == 0 && of_unit < l.prefetched;
            const u8* const tile = (is_here ? shared_a + lane * 16 : source) + of_unit * LORA_BLOCK + (half + j % HALVES) * 1024;
            const uint4 a0 = *(const uint4*)tile, a1 = *(const uint4*)(tile + 512);
#pragma unroll
            for (int eight = 0; eight < GROUPS; eight++) {
              const uint4 v = x[ahead][j % HALVES][eight];
              mma_16x8x16(d[eight], a0.x, a0.y, a0.z, a0.w, v.x, v.y);
              mma_16x8x16(d[eight], a1.x, a1.y, a1.z, a1.w, v.z, v.w);
            }
          }
        }
      }
      if constexpr (GROUPS == 1) {  // each warp adds its own part instead of waiting for the others'
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int column = 2 * t + j % 2;
          if (column < count && (group.rows >> column & 1))
            add_to_sum(sums + column * l.stride + unit.tile * 16 + j / 2 * 8 + g, d[0][j], 1);
        }
      } else {
#pragma unroll
        for (int eight = 0; eight < GROUPS; eight++) {
          float* const to = shared->parts + (warp * 16 + g) * COLUMNS_OF_PARTS + eight * 8 + 2 * t;
          *(float2*)to = make_float2(d[eight][0], d[eight][1]);
          *(float2*)(to + 8 * COLUMNS_OF_PARTS) = make_float2(d[eight][2], d[eight][3]);
        }
        sync_lora_warps();
        for (int j = thread; j < 16 * count; j += LORA_THREADS) {
          const int column = j / 16, output = j % 16;
          if (!(group.rows >> column & 1)) continue;
          float sum = 0.0f;
#pragma unroll
          for (int w = 0; w < LORA_WARPS; w++) sum += shared->parts[(w * 16 + output) * COLUMNS_OF_PARTS + column];
          add_to_sum(sums + column * l.stride + unit.tile * 16 + output, sum, LORA_WARPS);
        }
        sync_lora_warps();
      }
    }
    at += gridDim.x;
    if (at < share.units) unit = unit_of(product, at);
  }
  for (int i = blockIdx.x * LORA_THREADS + thread; i < count * l.stride; i += gridDim.x * LORA_THREADS) zeros[i] = 0;
}

// Wait until all blocks have added their shares, then store s A x in bf16 in shared memory.
__device__ __forceinline__ void collect_ax(const Lora& l, const LoraProduct& product, const Share& share, int count, const LoraShared* shared,
                                          int thread) {
  constexpr int AT_ONCE = 4;
  const u64* const sums = l.sums + (size_t)(product.number % LORA_BUFFERS) * count * l.stride;
  const u32 of_count = (1u << LORA_COUNT_BITS) - 1;
  int row = 0, output = thread;  // incremented: a division takes as long as a hundred additions
  const auto into_a_row = [&] {
    while (output >= product.outputs) output -= product.outputs, row++;
  };
  into_a_row();
  while (row < count) {
    int rows[AT_ONCE], outputs[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const bool inside = row < count;
      rows[i] = inside ? row : rows[0], outputs[i] = inside ? output : outputs[0];
      output += LORA_THREADS;
      into_a_row();
    }
    u64 found[AT_ONCE];
    bool all;
    do {
      all = true;
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++)
        asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(found[i]) : "l"(sums + rows[i] * l.stride + outputs[i]) : "memory");
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) all &= shared->scales[rows[i]] == 0.0f || ((u32)found[i] & of_count) == share.shares * LORA_WARPS;
    } while (!all);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const float ax = __ll2float_rn((long long)found[i] >> LORA_COUNT_BITS) * shared->scales[rows[i]];
      shared->ax[rows[i] * l.stride + outputs[i]] = float_to_bf16(ax);
    }
  }
  sync_lora_warps();
}

// A lane's part of a tile of B.
struct BTile {
  uint4 b[LORA_STEPS];
};
__device__ __forceinline__ BTile load_b_tile(const LoraProduct& product, const AdapterGroup& group, int tile, int lane) {
  const uint4* const source = (const uint4*)(group.tiles + product.b + (size_t)tile * LORA_TILE) + lane;
  BTile b_tile;
#pragma unroll
  for (int step = 0; step < LORA_STEPS; step++) b_tile.b[step] = source[step * 32];
  return b_tile;
}

// Multiply a tile of B with A x for the rows of a group; the upper eight outputs use the part of A x at `first`, the lower eight that
// at `second`.
template <int GROUPS>
__device__ __forceinline__ void multiply_b(const Lora& l, const LoraShared* shared, const BTile& b_tile, u64 rows, int first, int second, int lane,
                                            float (&d)[GROUPS][4]) {
#pragma unroll
  for (int eight = 0; eight < GROUPS; eight++) {
    const int column = eight * 8 + (lane >> 2);
    const bool mine = rows >> column & 1;
    const u16* const ax = shared->ax + (mine ? column : 0) * l.stride + 4 * (lane & 3);
#pragma unroll
    for (int step = 0; step < LORA_STEPS; step++) {
      const uint4 b = b_tile.b[step];
      const uint2 x = mine ? *(const uint2*)(ax + first + step * 16) : make_uint2(0, 0);
      if (first == second) {
        mma_16x8x16(d[eight], b.x, b.y, b.z, b.w, x.x, x.y);
        continue;
      }
      const uint2 y = mine ? *(const uint2*)(ax + second + step * 16) : make_uint2(0, 0);
      mma_16x8x16(d[eight], b.x, 0, b.z, 0, x.x, x.y);
      mma_16x8x16(d[eight], 0, b.y, 0, b.w, y.x, y.y);
    }
  }
}

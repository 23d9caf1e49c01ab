// Unmerged adapters in a step (LoRA, Hu 2021): y = W x + s B (A x), by one more warp a block. The base's products wait for nothing.
//
// A x needs all of x, and with it all blocks: each multiplies some columns of one tile of A and adds the result to sums in the
// card's memory, in whole numbers of 2^-30, so that the order of the additions changes nothing. B (A x) then comes to an item's
// sums as one more part, like the parts of K that the other warps have. Rows may have different adapters; the tiles of each are
// read once for all of its rows.
//
// Compiled for LORA, the rank: a multiple of 16.
#define LORA_STEPS (LORA / 16)
#define LORA_BLOCK 2048           // bytes of A: 16 outputs by 64 inputs, lane by lane, in the order of a lane's inputs in an NF4 tile
#define LORA_TILE (LORA * 32)     // bytes of B: 16 outputs by the rank
#define LORA_ONE 1073741824.0f    // 2^30
#define LORA_BUFFERS 3            // of sums: in use, being set to zero for the next product, still being read of the one before

struct LowRank {
  const u8* const* tiles;  // [adapters] of each product A, then B
  const float* scales;     // [adapters]
  const int* of_rows;      // [R] the row's adapter; -1: the base alone
  u64* sums;               // [LORA_BUFFERS][R][stride] A x
  int* arrived;            // [products] blocks that have added their share; zero at the start of a step, as the sums are
  int stride;              // most outputs of A
  int prefetched;          // blocks of A that shared memory holds
};

// What a product's adapter is.
struct LowRankPart {
  size_t a, b;  // where its A and B begin in an adapter's tiles
  int number;   // of the product in the step
  int outputs;  // of A: the parts of a fused product one below the other
  int blocks;   // of 64 inputs
};

// The rows' adapters, one at a time: `rows` has the bits of those with the one at hand, `left` of those still to come.
struct Adapters {
  int of_row, of_later;  // of this lane's row, and of the one 32 further
  u64 left, rows;
  int adapter;
};
__device__ __forceinline__ u64 rows_where(bool earlier, bool later) {
  return __ballot_sync(0xffffffffu, earlier) | (u64)__ballot_sync(0xffffffffu, later) << 32;
}
__device__ __forceinline__ Adapters adapters_of(const LowRank& l, int count, int lane) {
  Adapters each;
  each.of_row = lane < count ? l.of_rows[lane] : -1;
  each.of_later = lane + 32 < count ? l.of_rows[lane + 32] : -1;
  each.left = rows_where(each.of_row >= 0, each.of_later >= 0);
  return each;
}
__device__ __forceinline__ bool another(Adapters& each) {
  if (!each.left) return false;
  const int first = __ffsll((long long)each.left) - 1;
  each.adapter = __shfl_sync(0xffffffffu, first < 32 ? each.of_row : each.of_later, first & 31);
  each.rows = rows_where(each.of_row == each.adapter, each.of_later == each.adapter);
  each.left &= ~each.rows;
  return true;
}

// A unit of A x is a tile of 16 outputs and a share of the inputs: one for each block, or as near to it as it goes.
struct Unit {
  int tile, first, last;  // blocks of inputs
};
__device__ __forceinline__ int units_of(const LowRankPart& part) { return part.outputs / 16 * max(1, (int)gridDim.x / (part.outputs / 16)); }
__device__ __forceinline__ Unit unit_of(const LowRankPart& part, int unit) {
  const int shares = max(1, (int)gridDim.x / (part.outputs / 16)), share = unit % shares;
  return {unit / shares, share * part.blocks / shares, (share + 1) * part.blocks / shares};
}
__device__ __forceinline__ const u8* tiles_of_unit(const LowRank& l, const LowRankPart& part, const Unit& unit, int adapter) {
  return l.tiles[adapter] + part.a + ((size_t)unit.tile * part.blocks + unit.first) * LORA_BLOCK;
}

// Begin to fetch this block's share of a product's A, of the first adapter; what does not fit stays where it is.
__device__ __forceinline__ void prefetch_down(const LowRank& l, const LowRankPart& part, int count, u8* shared_a, int lane) {
  Adapters each = adapters_of(l, count, lane);
  if (another(each) && (int)blockIdx.x < units_of(part)) {
    const Unit unit = unit_of(part, blockIdx.x);
    const u8* source = tiles_of_unit(l, part, unit, each.adapter);
    const u32 target = (u32)__cvta_generic_to_shared(shared_a);
    const int bytes = min(l.prefetched, unit.last - unit.first) * LORA_BLOCK;
    for (int i = lane * 16; i < bytes; i += 512) copy_16_async(target + i, source + i);
  }
  commit_copies();
}

// This block's share of A x, added to the sums. x_of(block, half, column): 8 inputs of a lane, as an NF4 tile's order has them.
template <int GROUPS, class X>
__device__ __forceinline__ void add_down(const LowRank& l, const LowRankPart& part, int count, const u8* shared_a, int lane, X x_of) {
  const int g = lane >> 2, t = lane & 3;
  u64* const sums = l.sums + (size_t)(part.number % LORA_BUFFERS) * count * l.stride;
  u64* const zeros = l.sums + (size_t)((part.number + 1) % LORA_BUFFERS) * count * l.stride;
  wait_copies_but<0>();
  __syncwarp();
  for (int at = blockIdx.x; at < units_of(part); at += gridDim.x) {
    const Unit unit = unit_of(part, at);
    Adapters each = adapters_of(l, count, lane);
    for (bool is_first = at == blockIdx.x; another(each); is_first = false) {
      const u8* const source = tiles_of_unit(l, part, unit, each.adapter) + lane * 16;
      float d[GROUPS][4] = {};
      for (int block = unit.first; block < unit.last; block++) {
        const int offset = (block - unit.first) * LORA_BLOCK;
        const u8* const tile = is_first && block - unit.first < l.prefetched ? shared_a + offset + lane * 16 : source + offset;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const uint4 a0 = *(const uint4*)(tile + half * 1024), a1 = *(const uint4*)(tile + half * 1024 + 512);
#pragma unroll
          for (int group = 0; group < GROUPS; group++) {
            const uint4 x = x_of(block, half, group * 8 + g);
            mma_16x8x16(d[group], a0.x, a0.y, a0.z, a0.w, x.x, x.y);
            mma_16x8x16(d[group], a1.x, a1.y, a1.z, a1.w, x.z, x.w);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < GROUPS * 4; i++) {
        const int column = i / 4 * 8 + 2 * t + i % 2, output = unit.tile * 16 + g + i % 4 / 2 * 8;
        if (each.rows >> column & 1) atomicAdd(sums + column * l.stride + output, (u64)__float2ll_rn(d[i / 4][i % 4] * LORA_ONE));
      }
    }
  }
  for (int i = blockIdx.x * 32 + lane; i < count * l.stride; i += gridDim.x * 32) zeros[i] = 0;
  __threadfence();
  __syncwarp();
  if (lane == 0) asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(l.arrived + part.number) : "memory");
}

// Wait until all blocks have added theirs; s A x in bf16 to shared memory, [R][stride].
__device__ __forceinline__ void take_down(const LowRank& l, const LowRankPart& part, int count, u16* shared_ax, int lane) {
  const u64* const sums = l.sums + (size_t)(part.number % LORA_BUFFERS) * count * l.stride;
  int seen;
  do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(l.arrived + part.number) : "memory");
  while (seen < (int)gridDim.x);
  __syncwarp();
  for (int row = 0; row < count; row++) {
    const int adapter = l.of_rows[row];
    const float scale = adapter < 0 ? 0.0f : l.scales[adapter] / LORA_ONE;
#pragma unroll 6
    for (int i = lane; i < part.outputs; i += 32)
      shared_ax[row * l.stride + i] = float_to_bf16(__ll2float_rn((long long)__ldcg(sums + row * l.stride + i)) * scale);
  }
  __syncwarp();
}

// B (A x) of a tile; the upper eight outputs belong to the part of A x that begins at `first`, the lower to that at `second`.
template <int GROUPS>
__device__ __forceinline__ void up(const LowRank& l, const LowRankPart& part, int tile, int first, int second, int count,
                                   const u16* shared_ax, int lane, float (&d)[GROUPS][4]) {
  const int g = lane >> 2, t = lane & 3;
  Adapters each = adapters_of(l, count, lane);
  while (another(each)) {
    const uint4* const source = (const uint4*)(l.tiles[each.adapter] + part.b + (size_t)tile * LORA_TILE) + lane;
    uint4 b[LORA_STEPS];
#pragma unroll
    for (int step = 0; step < LORA_STEPS; step++) b[step] = source[step * 32];
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
      const int column = group * 8 + g;
      const bool mine = each.rows >> column & 1;
      const u16* const ax = shared_ax + (mine ? column : 0) * l.stride + 4 * t;
#pragma unroll
      for (int step = 0; step < LORA_STEPS; step++) {
        const uint2 x = mine ? *(const uint2*)(ax + first + step * 16) : make_uint2(0, 0);
        if (first == second) {
          mma_16x8x16(d[group], b[step].x, b[step].y, b[step].z, b[step].w, x.x, x.y);
          continue;
        }
        const uint2 y = mine ? *(const uint2*)(ax + second + step * 16) : make_uint2(0, 0);
        mma_16x8x16(d[group], b[step].x, 0, b[step].z, 0, x.x, x.y);
        mma_16x8x16(d[group], 0, b[step].y, 0, b[step].w, y.x, y.y);
      }
    }
  }
}

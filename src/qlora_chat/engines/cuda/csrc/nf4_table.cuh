// NF4 bytes to pairs of bf16: a lookup table in shared memory with a copy per bank, so that 32 lanes look up 32 bytes at once.
//
// Compiled for WIDE (1: rows of 256 bytes instead of 128, so that a byte is a lane's address in one instruction).
#define TABLE_BYTES (WIDE ? 65536 : 32768)
#define CODE_BYTES 1024  // 256 values of absmax codes, behind the table

__device__ __forceinline__ u32 dequantize_pair(const u8* table, u32 word, int which, u32 lane_offset) {
#if WIDE
  return *(const u32*)(table + __byte_perm(word, lane_offset, 0x5504 | which << 4));
#else
  const u32 shifted = which == 0 ? word << 7 : word >> (8 * which - 7);
  return *(const u32*)(table + ((shifted & 0x7f80u) | lane_offset));
#endif
}

// Fill the table, by all threads of a block. code: [16] values of NF4, then [256] of absmax codes.
__device__ __forceinline__ void make_table(const float* code, u8* table, float* absmax_code, int threads) {
  for (int i = threadIdx.x; i < 2048; i += threads) {
    const u32 pair = floats_to_bf16x2(code[i >> 7], code[(i >> 3) & 15]);
    *(uint4*)(table + (i >> 3) * (WIDE ? 256 : 128) + (i & 7) * 16) = make_uint4(pair, pair, pair, pair);
  }
  for (int i = threadIdx.x; i < 256; i += threads) absmax_code[i] = code[16 + i];
}

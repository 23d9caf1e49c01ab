// How the KV cache keeps a head's key or value of one position: in bf16, or (KV8) in int8 with one scale of its own.

#if KV8
typedef signed char Kept;
typedef float Newest;  // a step's own keys and values wait in float32 until all of a head is there and its scale is known
struct Eight {
  uint2 codes;
  float scale;
};
#else
typedef u16 Kept;
typedef u16 Newest;
struct Eight {
  uint4 codes;
};
#endif

// Eight elements and their position's scale. `fresh`: other blocks of the same kernel wrote them.
__device__ __forceinline__ Eight eight_of(const Kept* kept, const float* scale, bool fresh) {
  Eight eight;
#if KV8
  eight.codes = fresh ? __ldcg((const uint2*)kept) : *(const uint2*)kept;
  eight.scale = fresh ? __ldcg(scale) : *scale;
#else
  eight.codes = fresh ? __ldcg((const uint4*)kept) : *(const uint4*)kept;
#endif
  return eight;
}

#if KV8
__device__ __forceinline__ float scale_of(const Eight& eight) { return eight.scale; }

// Unscaled. A byte b, biased to be positive, in the lowest bits of 2^23: converting it as an integer takes four times as long.
__device__ __forceinline__ void unfold(const Eight& eight, float (&v)[8]) {
  const u32 words[2] = {eight.codes.x ^ 0x80808080u, eight.codes.y ^ 0x80808080u};
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = __uint_as_float(__byte_perm(words[i / 4], 0x4b000000u, 0x7540 | i % 4)) - 8388736.0f;
}

// One warp keeps a head's key or value; lane l has elements l, 32 + l and so on. The largest magnitude becomes 127.
template <int EACH> __device__ __forceinline__ void keep(const float (&v)[EACH], Kept* kept, float* scale) {
  const int lane = threadIdx.x & 31;
  float most = 0.0f;
#pragma unroll
  for (int i = 0; i < EACH; i++) most = fmaxf(most, fabsf(v[i]));
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, offset));
  const float steps = most > 0.0f ? 127.0f / most : 0.0f;
#pragma unroll
  for (int i = 0; i < EACH; i++) kept[i * 32 + lane] = (Kept)__float2int_rn(v[i] * steps);
  if (lane == 0) *scale = most / 127.0f;
}

// The same for what a product has left.
template <int DIM> __device__ __forceinline__ void keep_newest(const Newest* newest, Kept* kept, float* scale) {
  float v[DIM / 32];
#pragma unroll
  for (int i = 0; i < DIM / 32; i++) v[i] = __ldcg(newest + i * 32 + (threadIdx.x & 31));
  keep(v, kept, scale);
}
#else
__device__ __forceinline__ float scale_of(const Eight&) { return 1.0f; }

__device__ __forceinline__ void unfold(const Eight& eight, float (&v)[8]) {
  const u32 words[4] = {eight.codes.x, eight.codes.y, eight.codes.z, eight.codes.w};
#pragma unroll
  for (int i = 0; i < 4; i++) v[2 * i] = low_to_float(words[i]), v[2 * i + 1] = high_to_float(words[i]);
}
#endif

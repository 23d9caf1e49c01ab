// Elements of the KV cache: a head's key or value of one position is in bf16, or (KV8) in int8 with one float32 scale.

#if KV8
typedef signed char CacheElement;
typedef float NewElement;  // a step's own keys and values are float32 until the whole head is there and its scale is known
struct EightElements {
  uint2 codes;
  float scale;
};
#else
typedef u16 CacheElement;
typedef u16 NewElement;
struct EightElements {
  uint4 codes;
};
#endif

// Load eight elements and their position's scale. `written_in_kernel`: by other blocks of this kernel, so not through L1.
__device__ __forceinline__ EightElements load_eight(const CacheElement* cached, const float* scale, bool written_in_kernel) {
  EightElements eight;
#if KV8
  eight.codes = written_in_kernel ? __ldcg((const uint2*)cached) : *(const uint2*)cached;
  eight.scale = written_in_kernel ? __ldcg(scale) : *scale;
#else
  eight.codes = written_in_kernel ? __ldcg((const uint4*)cached) : *(const uint4*)cached;
#endif
  return eight;
}

#if KV8
__device__ __forceinline__ float scale_of(const EightElements& eight) { return eight.scale; }

// To float32, unscaled. The byte, biased to be positive, becomes the low bits of 2^23: four times as fast as an integer conversion.
__device__ __forceinline__ void dequantize_eight(const EightElements& eight, float (&v)[8]) {
  const u32 words[2] = {eight.codes.x ^ 0x80808080u, eight.codes.y ^ 0x80808080u};
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = __uint_as_float(__byte_perm(words[i / 4], 0x4b000000u, 0x7540 | i % 4)) - 8388736.0f;
}

// Quantize a head's key or value by one warp; lane l has elements l, 32 + l and so on. The largest magnitude becomes 127.
template <int EACH> __device__ __forceinline__ void quantize_head(const float (&v)[EACH], CacheElement* cached, float* scale) {
  const int lane = threadIdx.x & 31;
  float max_abs = 0.0f;
#pragma unroll
  for (int i = 0; i < EACH; i++) max_abs = fmaxf(max_abs, fabsf(v[i]));
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) max_abs = fmaxf(max_abs, __shfl_xor_sync(0xffffffffu, max_abs, offset));
  const float steps = max_abs > 0.0f ? 127.0f / max_abs : 0.0f;
#pragma unroll
  for (int i = 0; i < EACH; i++) cached[i * 32 + lane] = (CacheElement)__float2int_rn(v[i] * steps);
  if (lane == 0) *scale = max_abs / 127.0f;
}

// The same from the buffer of a step's new keys and values.
template <int DIM> __device__ __forceinline__ void quantize_new_head(const NewElement* new_kv, CacheElement* cached, float* scale) {
  float v[DIM / 32];
#pragma unroll
  for (int i = 0; i < DIM / 32; i++) v[i] = __ldcg(new_kv + i * 32 + (threadIdx.x & 31));
  quantize_head(v, cached, scale);
}
#else
__device__ __forceinline__ float scale_of(const EightElements&) { return 1.0f; }

__device__ __forceinline__ void dequantize_eight(const EightElements& eight, float (&v)[8]) {
  const u32 words[4] = {eight.codes.x, eight.codes.y, eight.codes.z, eight.codes.w};
#pragma unroll
  for (int i = 0; i < 4; i++) v[2 * i] = low_to_float(words[i]), v[2 * i + 1] = high_to_float(words[i]);
}
#endif

// Shared by all kernels: short types, bf16 conversions (NVRTC has no headers here), asynchronous copies, dependent launch, barriers.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define MAX_PARTIALS 1024  // partial sums of squares of a row, one per row tile
#define MIN_SPLIT_POSITIONS 64

__device__ __forceinline__ float bf16_to_float(u16 v) { return __uint_as_float((u32)v << 16); }
__device__ __forceinline__ float low_to_float(u32 v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high_to_float(u32 v) { return __uint_as_float(v & 0xffff0000u); }

__device__ __forceinline__ u32 floats_to_bf16x2(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ u16 float_to_bf16(float v) { return (u16)floats_to_bf16x2(v, 0.0f); }

// Wait until the previous kernel has finished and its writes are visible. Before this a kernel may read weights only.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Let the next kernel start on the card and fetch its weights (programmatic dependent launch).
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void copy_16_async(u32 shared_address, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address), "l"(source) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait_copies_except() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

__device__ __forceinline__ void mma_16x8x16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// Barriers in shared memory (PTX mbarrier): a warp arrives without blocking; only consumers wait.
__device__ __forceinline__ void barrier_init(u64* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"((u32)__cvta_generic_to_shared(barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u64* barrier) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"((u32)__cvta_generic_to_shared(barrier)) : "memory");
}
__device__ __forceinline__ void barrier_wait(u64* barrier, u32 parity) {
  u32 done;
  do
#if __CUDA_ARCH__ >= 900  // suspends the thread instead of spinning
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
#else
    asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
#endif
                 : "=r"(done)
                 : "r"((u32)__cvta_generic_to_shared(barrier)), "r"(parity)
                 : "memory");
  while (!done);
}

// Splits of a row's positions in attention. They depend on the row's own length and on what is the same in every step only, never on
// the other rows of the step: the order of sums, and so the rounding, is that of the row alone.
__device__ __forceinline__ int splits_of(int length, int max_splits) { return min(max_splits, (length + MIN_SPLIT_POSITIONS - 1) / MIN_SPLIT_POSITIONS); }

// The rows of a step. A row is one token that goes through the model: a chat's newest, a drafted one, or one of a prompt.
struct Rows {
  const int* slots;      // [R] in the KV cache; -1: the row is padding
  const int* positions;  // [R] of the row's token in its chat
};

// What all kernels share: short types, bf16 by hand (NVRTC sees no headers), asynchronous copies, programmatic launch.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define MOST_PARTIALS 1024  // sums of squares of a row, one of each row tile
#define LEAST_OF_SPLIT 64  // positions

__device__ __forceinline__ float bf16_to_float(u16 v) { return __uint_as_float((u32)v << 16); }
__device__ __forceinline__ float low_to_float(u32 v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high_to_float(u32 v) { return __uint_as_float(v & 0xffff0000u); }

__device__ __forceinline__ u32 floats_to_bf16x2(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ u16 float_to_bf16(float v) { return (u16)floats_to_bf16x2(v, 0.0f); }

// The kernel before has finished, and what it wrote can be read. What comes earlier in a kernel may read weights only.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The kernel after may take its place on the card and begin to fetch its weights.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void copy_16_async(u32 shared_address, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address), "l"(source) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait_copies_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

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

// Barriers in shared memory (PTX mbarrier): a warp arrives and goes on; who needs it waits.
__device__ __forceinline__ void barrier_make(u64* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"((u32)__cvta_generic_to_shared(barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u64* barrier) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"((u32)__cvta_generic_to_shared(barrier)) : "memory");
}
__device__ __forceinline__ void barrier_wait(u64* barrier, u32 parity) {
  u32 done;
  do
#if __CUDA_ARCH__ >= 900  // sleeps for a while instead of taking turns from those who have something to do
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
#else
    asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
#endif
                 : "=r"(done)
                 : "r"((u32)__cvta_generic_to_shared(barrier)), "r"(parity)
                 : "memory");
  while (!done);
}

// Parts in which a row's positions are attended to. What is summed first must not depend on who else is in the step, or a row would
// round otherwise beside others than alone: so they follow from the row's own length and from what is the same in every step.
__device__ __forceinline__ int splits_of(int length, int most) { return min(most, (length + LEAST_OF_SPLIT - 1) / LEAST_OF_SPLIT); }

// What a step knows of its rows. A row is one token going through the model: a chat's newest, or one of a prompt.
struct Rows {
  const int* slots;      // [R] place in the KV cache; -1: the row is padding
  const int* positions;  // [R] of the row's token in its chat
};

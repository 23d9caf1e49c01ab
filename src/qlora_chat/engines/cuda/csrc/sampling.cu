// Both ends of a step: token to embedding, and logits to the next token.
//
// Sampling is that of engines/core/sampler.py, in its order: repetition penalty, temperature, top-k, top-p, min-p, one uniform
// draw. The vocabulary is not sorted: the smallest weight that passes top-k and top-p is found by bisection over the bits of the weights, and
// all sums have a fixed order, so that a seed reproduces its answer. One block per row.
//
// Compiled for VOCABULARY.
#include "common.cuh"

struct Embed {
  const void* embeddings;  // [V][H] bf16, or int8 where there are scales
  const float* scales;     // [V] or null
  const int* tokens;       // [R]
  const u16* norm;         // [H] weight of the first norm
  float* residual;         // [R][H]
  u16* x;                  // [R][H]
  float* squares;          // [R][MAX_PARTIALS], one used
  int* arrivals;           // [arrival_count] counters of the step, set to zero here
  int hidden, arrival_count;
};

extern "C" __global__ void __launch_bounds__(256) embed(const __grid_constant__ Embed p) {
  __shared__ float sums[8];
  const int row = blockIdx.x, lane = threadIdx.x & 31;
  launch_dependents();
  wait_for_previous();
  for (int i = row * 256 + threadIdx.x; i < p.arrival_count; i += gridDim.x * 256) p.arrivals[i] = 0;
  const int token = p.tokens[row];
  const size_t source = (size_t)token * p.hidden;
  const float scale = p.scales ? p.scales[token] : 0.0f;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < p.hidden; i += 256) {
    const float h = p.scales ? ((const signed char*)p.embeddings)[source + i] * scale : bf16_to_float(((const u16*)p.embeddings)[source + i]);
    p.residual[(size_t)row * p.hidden + i] = h;
    p.x[(size_t)row * p.hidden + i] = float_to_bf16(h * bf16_to_float(p.norm[i]));
    squares += h * h;
  }
  squares = warp_sum(squares);
  if (lane == 0) sums[threadIdx.x >> 5] = squares;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0.0f;
    for (int i = 0; i < 8; i++) total += sums[i];
    p.squares[row * MAX_PARTIALS] = total;
  }
}

#define THREADS 1024
#define EACH ((VOCABULARY + THREADS - 1) / THREADS)

struct Sample {
  const float* logits;      // [R][V]
  u32* seen;                // [slots][(V + 31) / 32] bits: tokens in prompt or answer
  int* tokens;              // [R] in: the row's token; out: the next
  int* positions;           // [R] advanced by one
  int* counts;              // [R] tokens sampled so far for the row's chat
  const int* slots;         // [R]
  const int* sample_modes;  // [R] 0: a prefill row, which only fills the cache; 1: sample and advance the row;
                            // DRAFTED + n: sample, where the tokens of this row and of the n - 1 before it are drafts
  const float* temperature;  // [R] each: the logits processors of settings/sampling.py, in their order
  const float* top_p;
  const int* top_k;
  const float* min_p;
  const float* repetition_penalty;
  const u64* seeds;
  int* sampled;  // [R][ring] in pinned host memory; -1 where logits are not finite
  int ring;
};

#define DRAFTED 2  // as in rows.py

__device__ __forceinline__ u32 mulhi(u32 a, u32 b) { return __umulhi(a, b); }

// Philox 4x32-10 (Salmon 2011): uniform in [0, 1) from a seed and the number of the draw.
__device__ float uniform(u64 seed, u32 number) {
  u32 x0 = number, x1 = 0, x2 = 0, x3 = 0, k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
  for (int i = 0; i < 10; i++) {
    const u32 high0 = mulhi(0xD2511F53u, x0), low0 = 0xD2511F53u * x0;
    const u32 high1 = mulhi(0xCD9E8D57u, x2), low1 = 0xCD9E8D57u * x2;
    x0 = high1 ^ x1 ^ k0, x1 = low1, x2 = high0 ^ x3 ^ k1, x3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return (float)(x0 >> 8) * (1.0f / 16777216.0f);
}

__shared__ float floats[2][32];
__shared__ int integers[2][32];

// Block-wide reductions in a fixed order; every thread gets the result. `phase` alternates two buffers, so that one barrier is enough.
__device__ __forceinline__ float block_sum(float v, int& phase) {
  const int lane = threadIdx.x & 31;
  v = warp_sum(v);
  phase ^= 1;
  if (lane == 0) floats[phase][threadIdx.x >> 5] = v;
  __syncthreads();
  return warp_sum(floats[phase][lane]);
}
__device__ __forceinline__ float block_max(float v, int& phase) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  phase ^= 1;
  if (lane == 0) floats[phase][threadIdx.x >> 5] = v;
  __syncthreads();
  v = floats[phase][lane];
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}
__device__ __forceinline__ int block_count(int v, int& phase) {
  const int lane = threadIdx.x & 31;
  v = __reduce_add_sync(0xffffffffu, v);
  phase ^= 1;
  if (lane == 0) integers[phase][threadIdx.x >> 5] = v;
  __syncthreads();
  return __reduce_add_sync(0xffffffffu, integers[phase][lane]);
}
__device__ __forceinline__ u32 block_max_bits(u32 v, int& phase) {
  const int lane = threadIdx.x & 31;
  v = __reduce_max_sync(0xffffffffu, v);
  phase ^= 1;
  if (lane == 0) integers[phase][threadIdx.x >> 5] = (int)v;
  __syncthreads();
  return __reduce_max_sync(0xffffffffu, (u32)integers[phase][lane]);
}

// Exclusive prefix sum over the threads, and the total.
__device__ __forceinline__ float block_sum_before(float v, float& total, int& phase) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float inclusive = v;
#pragma unroll
  for (int offset = 1; offset < 32; offset <<= 1) {
    const float other = __shfl_up_sync(0xffffffffu, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  phase ^= 1;
  if (lane == 31) floats[phase][warp] = inclusive;
  __syncthreads();
  float of_warps = floats[phase][lane];
#pragma unroll
  for (int offset = 1; offset < 32; offset <<= 1) {
    const float other = __shfl_up_sync(0xffffffffu, of_warps, offset);
    if (lane >= offset) of_warps += other;
  }
  total = __shfl_sync(0xffffffffu, of_warps, 31);
  const float earlier = __shfl_sync(0xffffffffu, of_warps, warp - 1 & 31);
  return inclusive - v + (warp ? earlier : 0.0f);
}

__shared__ u64 candidates[THREADS];

// Sort one candidate per thread, the largest first (bitonic sort, Batcher 1968).
__device__ __forceinline__ u64 sorted(u64 mine) {
  const int thread = threadIdx.x;
  for (int size = 2; size <= THREADS; size <<= 1)
    for (int apart = size >> 1; apart > 0; apart >>= 1) {
      u64 other;
      if (apart < 32) {
        other = __shfl_xor_sync(0xffffffffu, mine, apart);
      } else {
        __syncthreads();
        candidates[thread] = mine;
        __syncthreads();
        other = candidates[thread ^ apart];
      }
      const bool takes_larger = ((thread & apart) == 0) == ((thread & size) == 0);
      mine = takes_larger == (mine > other) ? mine : other;
    }
  return mine;
}

// Draw where at most THREADS weights can pass: sort them, apply top-k, then top-p and min-p to what is left. Returns the token.
// The largest weight is 1, so min-p cuts weights below itself.
__device__ int draw_sorted(const float (&weight)[EACH], u32 threshold, int top_k, float top_p, float min_p, float mass,
                           float uniform, int& phase) {
  __shared__ int filled, token;
  const int thread = threadIdx.x;
  __syncthreads();
  candidates[thread] = 0;
  if (thread == 0) filled = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < EACH; i++)  // the token breaks ties, so the order of arrival does not matter
    if (__float_as_uint(weight[i]) >= threshold && weight[i] > 0.0f)
      candidates[atomicAdd(&filled, 1)] = (u64)__float_as_uint(weight[i]) << 32 | ~(u32)(i * THREADS + thread);
  __syncthreads();
  const u64 mine = sorted(candidates[thread]);
  float w = __uint_as_float((u32)(mine >> 32)), total;
  if (top_k > 0 && thread >= top_k) w = 0.0f;
  float before = block_sum_before(w, total, phase);
  if (top_k > 0) mass = total;
  if ((top_p < 1.0f && thread > 0 && before >= top_p * mass) || w < min_p) w = 0.0f;
  before = block_sum_before(w, total, phase);
  const float target = uniform * total;
  const u32 last = block_max_bits(w > 0.0f && before <= target ? thread + 1 : 0, phase);
  if (thread + 1 == last) token = (int)~(u32)mine;
  __syncthreads();
  return token;
}

// Draw where more weights pass, without sorting: those of at least `threshold`, in the order of the threads. Returns the token.
__device__ int draw_unsorted(const float (&weight)[EACH], u32 threshold, float uniform, int& phase) {
  __shared__ int token;
  float mine = 0.0f, total;
#pragma unroll
  for (int i = 0; i < EACH; i++) mine += __float_as_uint(weight[i]) >= threshold ? weight[i] : 0.0f;
  float sum = block_sum_before(mine, total, phase);
  const float target = uniform * total;
  const u32 last = block_max_bits(mine > 0.0f && sum <= target ? threadIdx.x + 1 : 0, phase);
  if (threadIdx.x + 1 == last) {
    bool found = false;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (!found && weight[i] > 0.0f && __float_as_uint(weight[i]) >= threshold) {
        token = i * THREADS + threadIdx.x;  // rounding may put the target beyond the last one, which is then drawn
        sum += weight[i];
        found = sum > target;
      }
  }
  __syncthreads();
  return token;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) sample(const __grid_constant__ Sample p) {
  const int row = blockIdx.x, thread = threadIdx.x;
  launch_dependents();
  wait_for_previous();
  const int slot = p.slots[row];
  const int sample_mode = p.sample_modes[row];
  if (slot < 0 || !sample_mode) return;
  int phase = 0;
  const float penalty = p.repetition_penalty[row], temperature = p.temperature[row], top_p = p.top_p[row], min_p = p.min_p[row];
  const int top_k = p.top_k[row] < VOCABULARY ? p.top_k[row] : 0;
  u32* const seen = p.seen + (size_t)slot * ((VOCABULARY + 31) / 32);
  float weight[EACH];  // first logits, then their exponentials: monotonic, and positive floats compare as their bits do
  float max_logit = -3e38f;
  bool not_finite = false;
#pragma unroll
  for (int i = 0; i < EACH; i++) {  // all loads before their first use
    const int token = i * THREADS + thread;
    weight[i] = p.logits[(size_t)row * VOCABULARY + min(token, VOCABULARY - 1)];
    if (token >= VOCABULARY) weight[i] = -3e38f;
  }
  const float multiply = temperature > 0.0f ? 1.0f / temperature : 1.0f, divide = multiply / penalty;
#pragma unroll
  for (int i = 0; i < EACH; i++) not_finite |= !(fabsf(weight[i]) < 3.3e38f);
  if (penalty != 1.0f) {
    // a warp's 32 tokens of a round are one word of `seen`; each lane fetches the word of one round
    u32 words[(EACH + 31) / 32];
#pragma unroll
    for (int j = 0; j < (EACH + 31) / 32; j++) words[j] = seen[min((j * 32 + (thread & 31)) * 32 + (thread >> 5), (VOCABULARY - 1) / 32)];
    for (int n = 0; n < sample_mode - DRAFTED; n++) {  // drafts count as seen; no row writes its token in such a step
      const int draft = p.tokens[row - n], word = draft >> 5, round = word >> 5;
#pragma unroll
      for (int j = 0; j < (EACH + 31) / 32; j++)
        if (round == j * 32 + (thread & 31) && (word & 31) == thread >> 5) words[j] |= 1u << (draft & 31);
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const bool is_seen = __shfl_sync(0xffffffffu, words[i / 32], i % 32) >> (thread & 31) & 1;
      weight[i] *= !is_seen ? multiply : weight[i] < 0.0f ? multiply * penalty : divide;
    }
  } else {
#pragma unroll
    for (int i = 0; i < EACH; i++) weight[i] *= multiply;
  }
#pragma unroll
  for (int i = 0; i < EACH; i++)
    if (i * THREADS + thread < VOCABULARY) max_logit = fmaxf(max_logit, weight[i]);
  not_finite = block_count(not_finite, phase) > 0;
  max_logit = block_max(max_logit, phase);
  int token = -1;
  if (!not_finite && temperature > 0.0f) {
    float mine = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++) mine += weight[i] = i * THREADS + thread < VOCABULARY ? __expf(weight[i] - max_logit) : 0.0f;
    const float mass = block_sum(mine, phase), target_mass = top_p * mass;
    const float uniform_draw = uniform(p.seeds[row], (u32)p.counts[row]);
    // from the top bit down: the highest threshold above which enough weight is left, until few weights pass
    u32 threshold = 0;
    int above = THREADS + 1;
    if (top_k > 0 || top_p < 1.0f)
      for (u32 bit = 0x20000000u; bit && above > THREADS; bit >>= 1) {
        int count = 0;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < EACH; i++)
          if (__float_as_uint(weight[i]) >= (threshold | bit)) count++, sum += weight[i];
        count = block_count(count, phase);
        if (top_k > 0 ? count >= top_k : block_sum(sum, phase) >= target_mass) threshold |= bit, above = count;
      }
    token = above <= THREADS ? draw_sorted(weight, threshold, top_k, top_p, min_p, mass, uniform_draw, phase)
                             : draw_unsorted(weight, max(threshold, __float_as_uint(min_p)), uniform_draw, phase);
  } else if (!not_finite) {  // greedy: the first of equals
    u32 first = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (i * THREADS + thread < VOCABULARY && weight[i] == max_logit) first = max(first, ~(u32)(i * THREADS + thread));
    token = (int)~block_max_bits(first, phase);
  }
  if (thread != 0) return;
  const int count = p.counts[row];
  if (sample_mode < DRAFTED) {
    if (!not_finite) {
      p.tokens[row] = token;
      seen[token >> 5] |= 1u << (token & 31);
    }
    p.positions[row]++;
    p.counts[row] = count + 1;
  }
  *(volatile int*)(p.sampled + (size_t)row * p.ring + count % p.ring) = token;
}

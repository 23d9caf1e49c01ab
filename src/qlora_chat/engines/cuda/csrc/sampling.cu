// The two ends of a step: a row's token to its embedding, and its logits to the next token.
//
// Choosing does what engines/core/sampler.py does, in the same order: repetition penalty, temperature, top-k, top-p, one uniform draw.
// Nothing is sorted: the weakest logit that top-k and top-p keep is found by bisection over the bits of the logits, in a fixed order
// of sums, so that a seed gives the same answer again. One block a row.
//
// Compiled for VOCABULARY.
#include "common.cuh"

struct Embed {
  const void* embeddings;  // [V][H] bf16, or int8 where there are scales
  const float* scales;     // [V] or null
  const int* tokens;      // [R]
  const u16* norm;        // [H] weight of the first norm
  float* residual;        // [R][H]
  u16* x;                 // [R][H]
  float* squares;         // [R][MOST_PARTIALS], one used
  int* arrivals;          // [arrival_count] counters of the step, set to zero
  int hidden, arrival_count;
};

extern "C" __global__ void __launch_bounds__(256) embed(const __grid_constant__ Embed p) {
  __shared__ float sums[8];
  const int row = blockIdx.x, lane = threadIdx.x & 31;
  let_next_begin();
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
    p.squares[row * MOST_PARTIALS] = total;
  }
}

#define THREADS 1024
#define EACH ((VOCABULARY + THREADS - 1) / THREADS)

struct Choose {
  const float* logits;  // [R][V]
  u32* seen;            // [slots][(V + 31) / 32] tokens in prompt or answer
  int* tokens;          // [R] in: the row's token; out: the next
  int* positions;       // [R] advanced by one
  int* counts;          // [R] tokens drawn so far by the row's chat
  const int* slots;     // [R]
  const int* ready;     // [R] 0: the row is a prompt's and only fills the cache; 1: choose, and go on from there;
                        // GUESSED + n: choose, where the tokens of this row and of those before it, n in all, are guesses
  const float* temperatures;
  const float* top_ps;
  const float* penalties;
  const int* top_ks;
  const u64* seeds;
  int* drawn;  // [R][ring] in the host's memory: -1 for logits that are not finite
  int ring;
};

#define GUESSED 2  // as in rows.py

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

// Over the block, the same in every thread, in an order that never changes. `turn` alternates so that one barrier is enough.
__device__ __forceinline__ float block_sum(float v, int& turn) {
  const int lane = threadIdx.x & 31;
  v = warp_sum(v);
  turn ^= 1;
  if (lane == 0) floats[turn][threadIdx.x >> 5] = v;
  __syncthreads();
  return warp_sum(floats[turn][lane]);
}
__device__ __forceinline__ float block_max(float v, int& turn) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  turn ^= 1;
  if (lane == 0) floats[turn][threadIdx.x >> 5] = v;
  __syncthreads();
  v = floats[turn][lane];
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}
__device__ __forceinline__ int block_count(int v, int& turn) {
  const int lane = threadIdx.x & 31;
  v = __reduce_add_sync(0xffffffffu, v);
  turn ^= 1;
  if (lane == 0) integers[turn][threadIdx.x >> 5] = v;
  __syncthreads();
  return __reduce_add_sync(0xffffffffu, integers[turn][lane]);
}
__device__ __forceinline__ u32 block_most(u32 v, int& turn) {
  const int lane = threadIdx.x & 31;
  v = __reduce_max_sync(0xffffffffu, v);
  turn ^= 1;
  if (lane == 0) integers[turn][threadIdx.x >> 5] = (int)v;
  __syncthreads();
  return __reduce_max_sync(0xffffffffu, (u32)integers[turn][lane]);
}

// Sum of the threads before this one, and of all.
__device__ __forceinline__ float block_sum_before(float v, float& total, int& turn) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float inclusive = v;
#pragma unroll
  for (int offset = 1; offset < 32; offset <<= 1) {
    const float other = __shfl_up_sync(0xffffffffu, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  turn ^= 1;
  if (lane == 31) floats[turn][warp] = inclusive;
  __syncthreads();
  float of_warps = floats[turn][lane];
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

// One candidate a thread, the largest first (bitonic sort, Batcher 1968).
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
      const bool wants_larger = ((thread & apart) == 0) == ((thread & size) == 0);
      mine = wants_larger == (mine > other) ? mine : other;
    }
  return mine;
}

// The few weights that can matter, sorted: top-k, then top-p among what it leaves, then one draw. Returns the token.
__device__ int draw_of_few(const float (&weight)[EACH], u32 floor, int top_k, float top_p, float mass, float uniform, int& turn) {
  __shared__ int filled, token;
  const int thread = threadIdx.x;
  __syncthreads();
  candidates[thread] = 0;
  if (thread == 0) filled = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < EACH; i++)  // equal weights are told apart by their tokens, so the order of arrival does not matter
    if (__float_as_uint(weight[i]) >= floor && weight[i] > 0.0f)
      candidates[atomicAdd(&filled, 1)] = (u64)__float_as_uint(weight[i]) << 32 | ~(u32)(i * THREADS + thread);
  __syncthreads();
  const u64 mine = sorted(candidates[thread]);
  float w = __uint_as_float((u32)(mine >> 32)), total;
  if (top_k > 0 && thread >= top_k) w = 0.0f;
  float before = block_sum_before(w, total, turn);
  if (top_k > 0) mass = total;
  if (top_p < 1.0f && thread > 0 && before >= top_p * mass) w = 0.0f;
  before = block_sum_before(w, total, turn);
  const float target = uniform * total;
  const u32 last = block_most(w > 0.0f && before <= target ? thread + 1 : 0, turn);
  if (thread + 1 == last) token = (int)~(u32)mine;
  __syncthreads();
  return token;
}

// The same where many weights matter, without an order: those from `weakest` on, the draw in the order of the threads.
__device__ int draw_of_many(const float (&weight)[EACH], u32 weakest, float uniform, int& turn) {
  __shared__ int token;
  float mine = 0.0f, total;
#pragma unroll
  for (int i = 0; i < EACH; i++) mine += __float_as_uint(weight[i]) >= weakest ? weight[i] : 0.0f;
  float sum = block_sum_before(mine, total, turn);
  const float target = uniform * total;
  const u32 last = block_most(mine > 0.0f && sum <= target ? threadIdx.x + 1 : 0, turn);
  if (threadIdx.x + 1 == last) {
    bool found = false;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (!found && weight[i] > 0.0f && __float_as_uint(weight[i]) >= weakest) {
        token = i * THREADS + threadIdx.x;  // rounding may leave the target behind the last one, which then takes it
        sum += weight[i];
        found = sum > target;
      }
  }
  __syncthreads();
  return token;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) choose(const __grid_constant__ Choose p) {
  const int row = blockIdx.x, thread = threadIdx.x;
  let_next_begin();
  wait_for_previous();
  const int slot = p.slots[row];
  const int ready = p.ready[row];
  if (slot < 0 || !ready) return;
  int turn = 0;
  const float penalty = p.penalties[row], temperature = p.temperatures[row], top_p = p.top_ps[row];
  const int top_k = p.top_ks[row] < VOCABULARY ? p.top_ks[row] : 0;
  u32* const seen = p.seen + (size_t)slot * ((VOCABULARY + 31) / 32);
  float weight[EACH];  // first the logits, then their exponentials: both rise together, and positive floats rise as their bits do
  float top = -3e38f;
  bool broken = false;
#pragma unroll
  for (int i = 0; i < EACH; i++) {  // loads before anything else: one wait for all of them
    const int token = i * THREADS + thread;
    weight[i] = p.logits[(size_t)row * VOCABULARY + min(token, VOCABULARY - 1)];
    if (token >= VOCABULARY) weight[i] = -3e38f;
  }
  const float multiply = temperature > 0.0f ? 1.0f / temperature : 1.0f, divide = multiply / penalty;
#pragma unroll
  for (int i = 0; i < EACH; i++) broken |= !(fabsf(weight[i]) < 3.3e38f);
  if (penalty != 1.0f) {
    // a warp's 32 tokens of a round are one word of `seen`; each lane fetches the word of one round
    u32 words[(EACH + 31) / 32];
#pragma unroll
    for (int j = 0; j < (EACH + 31) / 32; j++) words[j] = seen[min((j * 32 + (thread & 31)) * 32 + (thread >> 5), (VOCABULARY - 1) / 32)];
    for (int n = 0; n < ready - GUESSED; n++) {  // guesses count as seen; nobody writes the tokens of such rows
      const int guess = p.tokens[row - n], word = guess >> 5, round = word >> 5;
#pragma unroll
      for (int j = 0; j < (EACH + 31) / 32; j++)
        if (round == j * 32 + (thread & 31) && (word & 31) == thread >> 5) words[j] |= 1u << (guess & 31);
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
    if (i * THREADS + thread < VOCABULARY) top = fmaxf(top, weight[i]);
  broken = block_count(broken, turn) > 0;
  top = block_max(top, turn);
  int token = -1;
  if (!broken && temperature > 0.0f) {
    float mine = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++) mine += weight[i] = i * THREADS + thread < VOCABULARY ? __expf(weight[i] - top) : 0.0f;
    const float mass = block_sum(mine, turn), wanted = top_p * mass;
    const float uniform_draw = uniform(p.seeds[row], (u32)p.counts[row]);
    // from the top bit down: the highest floor above which there is still enough, until few are left
    u32 floor = 0;
    int above = THREADS + 1;
    if (top_k > 0 || top_p < 1.0f)
      for (u32 bit = 0x20000000u; bit && above > THREADS; bit >>= 1) {
        int count = 0;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < EACH; i++)
          if (__float_as_uint(weight[i]) >= (floor | bit)) count++, sum += weight[i];
        count = block_count(count, turn);
        if (top_k > 0 ? count >= top_k : block_sum(sum, turn) >= wanted) floor |= bit, above = count;
      }
    token = above <= THREADS ? draw_of_few(weight, floor, top_k, top_p, mass, uniform_draw, turn)
                             : draw_of_many(weight, floor, uniform_draw, turn);
  } else if (!broken) {  // greedy: of equals the first
    u32 first = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (i * THREADS + thread < VOCABULARY && weight[i] == top) first = max(first, ~(u32)(i * THREADS + thread));
    token = (int)~block_most(first, turn);
  }
  if (thread != 0) return;
  const int count = p.counts[row];
  if (ready < GUESSED) {
    if (!broken) {
      p.tokens[row] = token;
      seen[token >> 5] |= 1u << (token & 31);
    }
    p.positions[row]++;
    p.counts[row] = count + 1;
  }
  *(volatile int*)(p.drawn + (size_t)row * p.ring + count % p.ring) = token;
}

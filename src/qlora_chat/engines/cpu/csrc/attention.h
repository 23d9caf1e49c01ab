// Attention of one token's head over its slot of the cache, and what goes with it.
//
// Scope: one head at a time. The cache holds float32 or half floats; sums are float32.
#pragma once
#include <algorithm>
#include <cmath>

#include "simd.h"

using lanes::F16;

inline float dot(const float* a, const float* b, int n) {
  F16 first = lanes::zero(), second = lanes::zero();
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    first = lanes::fma(lanes::load(a + i), lanes::load(b + i), first);
    second = lanes::fma(lanes::load(a + i + 16), lanes::load(b + i + 16), second);
  }
  float total = 0;
  for (; i < n; i++) total += a[i] * b[i];
  return lanes::sum(lanes::add(first, second)) + total;
}

inline float half(uint16_t x) { return _cvtsh_ss(x); }

inline float dot(const float* a, const uint16_t* b, int n) {
  F16 first = lanes::zero(), second = lanes::zero();
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    first = lanes::fma(lanes::load(a + i), lanes::load_half(b + i), first);
    second = lanes::fma(lanes::load(a + i + 16), lanes::load_half(b + i + 16), second);
  }
  float total = 0;
  for (; i < n; i++) total += a[i] * half(b[i]);
  return lanes::sum(lanes::add(first, second)) + total;
}

// Rotary position embedding with the halves of a head as pairs, as Hugging Face stores LLaMA.
inline void rotate(float* x, const float* cos, const float* sin, int d) {
  for (int i = 0; i < d / 2; i++) {
    const float a = x[i], b = x[i + d / 2];
    x[i] = a * cos[i] - b * sin[i];
    x[i + d / 2] = b * cos[i] + a * sin[i];
  }
}

// The tensors of engines/core/kv_cache.py: (layers, slots, kv heads, window, head dim), contiguous.
struct CacheView {
  void *keys = nullptr, *values = nullptr;
  bool halves = false;
  int64_t slots = 0, heads = 0, window = 0, d = 0;

  size_t at(int layer, int64_t slot, int head, int64_t position) const {
    return (((layer * slots + slot) * heads + head) * window + position) * d;
  }
  void write(void* to, int layer, int64_t slot, int head, int64_t position, const float* x) const {
    const size_t first = at(layer, slot, head, position);
    if (!halves) return void(std::copy(x, x + d, (float*)to + first));
    uint16_t* out = (uint16_t*)to + first;
    int i = 0;
    for (; i + lanes::ROWS <= d; i += lanes::ROWS) lanes::store_half(out + i, lanes::load(x + i));
    for (; i < d; i++) out[i] = _cvtss_sh(x[i], 0);
  }
};

template <class T>
F16 load_cached(const T* p) {
  if constexpr (sizeof(T) == 2) return lanes::load_half(p);
  else return lanes::load(p);
}

// Weighted sum of values, columns [from, from + 16 * WAYS).
template <int WAYS, class T>
void weigh(const T* values, int d, int seen, const float* weights, float factor, float* out) {
  F16 sum[WAYS];
  lanes::each<WAYS>([&](auto way) { sum[way] = lanes::zero(); });
  for (int p = 0; p < seen; p++, values += d)
    lanes::each<WAYS>([&](auto way) __attribute__((always_inline)) {
      sum[way] = lanes::fma(load_cached(values + way * 16), lanes::set1(weights[p]), sum[way]);
    });
  lanes::each<WAYS>([&](auto way) { lanes::store(out + way * 16, lanes::mul(sum[way], lanes::set1(factor))); });
}

// `scores` becomes e^(score - largest); the sum of them. A NaN anywhere makes the sum NaN.
inline float softmax(float* scores, int seen, float most) {
  float total = 0;
  int p = 0;
  F16 sum = lanes::zero();
  for (; p + 16 <= seen; p += 16) {
    const F16 e = lanes::exponential(lanes::sub(lanes::load(scores + p), lanes::set1(most)));
    lanes::store(scores + p, e);
    sum = lanes::add(sum, e);
  }
  for (; p < seen; p++) total += scores[p] = std::exp(scores[p] - most);
  return lanes::sum(sum) + total;
}

template <class T>
void attention_over(const T* keys, const T* values, int d, const float* query, int seen, float* scores, float* out) {
  const float scale = 1.0f / std::sqrt(float(d));
  float most = -INFINITY;
  for (int p = 0; p < seen; p++) {
    scores[p] = dot(query, keys + size_t(p) * d, d) * scale;
    most = std::fmax(most, scores[p]);
  }
  const float factor = 1.0f / softmax(scores, seen, most);
  int at = 0;
  for (; at + 64 <= d; at += 64) weigh<4>(values + at, d, seen, scores, factor, out + at);
  for (; at + 16 <= d; at += 16) weigh<1>(values + at, d, seen, scores, factor, out + at);
  for (; at < d; at++) {
    float total = 0;
    for (int p = 0; p < seen; p++) {
      float value;
      if constexpr (sizeof(T) == 2) value = half(values[size_t(p) * d + at]);
      else value = values[size_t(p) * d + at];
      total += scores[p] * value;
    }
    out[at] = total * factor;
  }
}

inline void attention(const CacheView& cache, int layer, int64_t slot, int head, const float* query, int seen, float* scores,
                      float* out) {
  const size_t at = cache.at(layer, slot, head, 0);
  const int d = int(cache.d);
  if (cache.halves)
    return attention_over((const uint16_t*)cache.keys + at, (const uint16_t*)cache.values + at, d, query, seen, scores, out);
  attention_over((const float*)cache.keys + at, (const float*)cache.values + at, d, query, seen, scores, out);
}

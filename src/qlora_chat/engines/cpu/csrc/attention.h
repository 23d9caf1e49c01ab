// Attention of one query head over its slot of the KV cache, and rotary position embedding.
//
// Scope: one head at a time. The cache holds float32 or float16; sums are float32.
#pragma once
#include <algorithm>
#include <cmath>

#include "simd.h"

using simd::Vec16f;

// Sixteen elements, or one, of float32 or float16.
inline Vec16f load_cached(const float* p) { return simd::load(p); }
inline Vec16f load_cached(const uint16_t* half) { return simd::load_half(half); }
inline float to_float32(float x) { return x; }
inline float to_float32(uint16_t half) { return _cvtsh_ss(half); }

template <class T>
float dot(const float* a, const T* b, int n) {
  Vec16f first = simd::zero(), second = simd::zero();
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    first = simd::fma(simd::load(a + i), load_cached(b + i), first);
    second = simd::fma(simd::load(a + i + 16), load_cached(b + i + 16), second);
  }
  float total = 0;
  for (; i < n; i++) total += a[i] * to_float32(b[i]);
  return simd::reduce_add(simd::add(first, second)) + total;
}

// Rotary position embedding with the float16 of a head as pairs, as Hugging Face stores LLaMA.
inline void rotate(float* x, const float* cos, const float* sin, int d) {
  for (int i = 0; i < d / 2; i++) {
    const float a = x[i], b = x[i + d / 2];
    x[i] = a * cos[i] - b * sin[i];
    x[i + d / 2] = b * cos[i] + a * sin[i];
  }
}

// The tensors of engines/core/kv_cache.py: (layers, slots, kv heads, window, head dim), contiguous.
struct KVCacheView {
  void *keys = nullptr, *values = nullptr;
  bool float16 = false;
  int64_t slots = 0, heads = 0, window = 0, d = 0;

  size_t at(int layer, int64_t slot, int head, int64_t position) const {
    return (((layer * slots + slot) * heads + head) * window + position) * d;
  }
  void write(void* to, int layer, int64_t slot, int head, int64_t position, const float* x) const {
    const size_t first = at(layer, slot, head, position);
    if (!float16) return void(std::copy(x, x + d, (float*)to + first));
    uint16_t* out = (uint16_t*)to + first;
    int i = 0;
    for (; i + simd::ROWS <= d; i += simd::ROWS) simd::store_half(out + i, simd::load(x + i));
    for (; i < d; i++) out[i] = _cvtss_sh(x[i], 0);
  }
};

// Weighted sum of VECTORS * 16 columns of the values.
template <int VECTORS, class T>
void weighted_sum(const T* values, int d, int seen, const float* weights, float factor, float* out) {
  Vec16f sum[VECTORS];
  simd::unroll<VECTORS>([&](auto vector) { sum[vector] = simd::zero(); });
  for (int p = 0; p < seen; p++, values += d)
    simd::unroll<VECTORS>([&](auto vector) __attribute__((always_inline)) {
      sum[vector] = simd::fma(load_cached(values + vector * 16), simd::set1(weights[p]), sum[vector]);
    });
  simd::unroll<VECTORS>([&](auto vector) { simd::store(out + vector * 16, simd::mul(sum[vector], simd::set1(factor))); });
}

// Replaces `scores` by e^(score - max_score) and returns their sum. A NaN anywhere makes the sum NaN.
inline float softmax(float* scores, int seen, float max_score) {
  float total = 0;
  int p = 0;
  Vec16f sum = simd::zero();
  for (; p + 16 <= seen; p += 16) {
    const Vec16f e = simd::exp(simd::sub(simd::load(scores + p), simd::set1(max_score)));
    simd::store(scores + p, e);
    sum = simd::add(sum, e);
  }
  for (; p < seen; p++) total += scores[p] = std::exp(scores[p] - max_score);
  return simd::reduce_add(sum) + total;
}

template <class T>
void attend_slot(const T* keys, const T* values, int d, const float* query, int seen, float* scores, float* out) {
  const float scale = 1.0f / std::sqrt(float(d));
  float max_score = -INFINITY;
  for (int p = 0; p < seen; p++) {
    scores[p] = dot(query, keys + size_t(p) * d, d) * scale;
    max_score = std::fmax(max_score, scores[p]);
  }
  const float factor = 1.0f / softmax(scores, seen, max_score);
  int at = 0;
  for (; at + 64 <= d; at += 64) weighted_sum<4>(values + at, d, seen, scores, factor, out + at);
  for (; at + 16 <= d; at += 16) weighted_sum<1>(values + at, d, seen, scores, factor, out + at);
  for (; at < d; at++) {
    float total = 0;
    for (int p = 0; p < seen; p++) total += scores[p] * to_float32(values[size_t(p) * d + at]);
    out[at] = total * factor;
  }
}

inline void attention(const KVCacheView& cache, int layer, int64_t slot, int head, const float* query, int seen, float* scores,
                      float* out) {
  const size_t at = cache.at(layer, slot, head, 0);
  const int d = int(cache.d);
  if (cache.float16)
    return attend_slot((const uint16_t*)cache.keys + at, (const uint16_t*)cache.values + at, d, query, seen, scores, out);
  attend_slot((const float*)cache.keys + at, (const float*)cache.values + at, d, query, seen, scores, out);
}

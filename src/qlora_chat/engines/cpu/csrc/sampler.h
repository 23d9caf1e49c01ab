// Samples the next token from one row of logits: the same as engines/core/sampler.py, in one pass over the row.
//
// Scope: repetition penalty, temperature, top-k, top-p, min-p and the draw, in Transformers' order. Knows no chats or threads. (torch
// would do, but its threads go on spinning after each call, on the core that the next pass needs.)
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "simd.h"

// Begins with the logits processors of settings/sampling.py, by their names.
struct SamplerInput {
  float temperature, top_p;
  int top_k;  // 0: off
  float min_p, repetition_penalty;
  const uint8_t* seen;  // (vocabulary) 1 where the penalty applies; null where it is off
  double draw;          // uniform in [0, 1)
};

constexpr int NOT_FINITE = -1;
constexpr int TOP_CANDIDATES = 256;  // tried first where top-k is off: nearly always enough for top-p

class Sampler {
 public:
  int sample(const float* logits, int n, const SamplerInput& input) {
    row_.resize(n);
    apply_penalty(logits, n, input);
    const float best = largest(n);
    if (!std::isfinite(best)) return NOT_FINITE;
    if (input.temperature <= 0) return int(std::find(row_.begin(), row_.end(), best) - row_.begin());
    const double scale = 1.0 / input.temperature;
    const int top_k = input.top_k > 0 ? std::min(input.top_k, n) : n;
    if (top_k < n) {  // exactly the candidates, including ties with the last one
      select_top(n, top_k);
      compute_weights(best, scale);
      const double total = std::accumulate(weights_.begin(), weights_.end(), 0.0);
      drop_below(input.min_p);
      return draw(input, total, true);
    }
    const double total = total_weight(n, best, float(scale));
    select_top(n, std::min(n, TOP_CANDIDATES));
    compute_weights(best, scale);
    const bool all = int(tokens_.size()) == n, dropped = drop_below(input.min_p);
    const int token = draw(input, total, all || dropped);
    if (token >= 0) return token;
    select_top(n, n);
    compute_weights(best, scale);
    return draw(input, total, true);
  }

 private:
  std::vector<float> row_, peaks_;
  std::vector<int> tokens_;      // candidates, best first
  std::vector<double> weights_;  // e^((logit - largest) / temperature)

  void apply_penalty(const float* logits, int n, const SamplerInput& input) {
    if (!input.seen) return void(std::copy(logits, logits + n, row_.begin()));
    for (int i = 0; i < n; i++) {
      const float x = logits[i], other = x < 0 ? x * input.repetition_penalty : x / input.repetition_penalty;
      row_[i] = input.seen[i] ? other : x;
    }
  }

  // Also stores the largest of every sixteen in `peaks_`. NaN if any logit is not finite.
  float largest(int n) {
    peaks_.clear();
    simd::Vec16f best = simd::set1(-INFINITY), check = simd::zero();
    float rest = -INFINITY;
    int i = 0;
    for (; i + simd::ROWS <= n; i += simd::ROWS) {
      const simd::Vec16f x = simd::load(row_.data() + i);
      best = simd::max(best, x);
      check = simd::fma(x, simd::zero(), check);
      peaks_.push_back(simd::reduce_max(x));
    }
    float bad = simd::reduce_add(check);
    for (; i < n; i++) rest = std::max(rest, row_[i]), bad += row_[i] * 0.0f, peaks_.push_back(row_[i]);
    return bad == 0 ? std::max(simd::reduce_max(best), rest) : NAN;
  }

  // Selects the `count` largest and all ties with the last of them, in descending order. The count-th largest of the peaks is a
  // lower bound, and leaves little to sort.
  void select_top(int n, int count) {
    float threshold = -INFINITY;
    if (count < int(peaks_.size())) {
      std::vector<float>& peaks = peaks_;
      std::nth_element(peaks.begin(), peaks.begin() + (count - 1), peaks.end(), std::greater<float>());
      threshold = peaks[count - 1];
    }
    tokens_.clear();
    for (int i = 0; i < n; i++)
      if (row_[i] >= threshold) tokens_.push_back(i);
    std::sort(tokens_.begin(), tokens_.end(), [&](int a, int b) { return row_[a] != row_[b] ? row_[a] > row_[b] : a < b; });
    while (int(tokens_.size()) > count && row_[tokens_.back()] < row_[tokens_[count - 1]]) tokens_.pop_back();
  }

  void compute_weights(float best, double scale) {
    weights_.clear();
    for (const int token : tokens_) weights_.push_back(std::exp((row_[token] - best) * scale));
  }

  // Min-p: a weight is its token's probability over the likeliest one's. True if tokens were removed, so that the candidates
  // include every token that min-p leaves.
  bool drop_below(float min_p) {
    if (min_p <= 0) return false;
    const size_t before = tokens_.size();
    while (weights_.back() < min_p) weights_.pop_back(), tokens_.pop_back();
    return tokens_.size() < before;
  }

  // Sum of the weights of all tokens.
  double total_weight(int n, float best, float scale) const {
    simd::Vec16f sum = simd::zero();
    double rest = 0;
    int i = 0;
    for (; i + simd::ROWS <= n; i += simd::ROWS) {
      const simd::Vec16f x = simd::sub(simd::load(row_.data() + i), simd::set1(best));
      sum = simd::add(sum, simd::exp(simd::mul(x, simd::set1(scale))));
    }
    for (; i < n; i++) rest += std::exp((row_[i] - best) * scale);
    return simd::reduce_add(sum) + rest;
  }

  // Inverts the distribution of the tokens that top-p leaves; -1 if these may include more than `tokens_`.
  int draw(const SamplerInput& input, double total, bool complete) const {
    const double limit = input.top_p < 1 ? double(input.top_p) * total : INFINITY;
    size_t count = 0;
    double before = 0;
    while (count < tokens_.size() && (count == 0 || before < limit)) before += weights_[count++];
    if (count == tokens_.size() && !complete) return -1;
    const double target = input.draw * before;
    double sum = 0;
    for (size_t at = 0; at < count; at++)
      if ((sum += weights_[at]) > target) return tokens_[at];
    return tokens_[count - 1];
  }
};

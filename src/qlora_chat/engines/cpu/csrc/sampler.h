// Logits of one row -> the next token: what engines/core/sampler.py does through torch, in one pass over the row.
//
// Scope: penalty, temperature, top-k, top-p, min-p, the draw, in Transformers' order. Knows no chats and no threads. (torch would
// do, but its team of threads goes on spinning after each call, on the core that the next pass wants.)
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "simd.h"

struct Choice {  // begins with the logits processors of settings/sampling.py, in their order
  float temperature, top_p;
  int top_k;  // 0: all
  float min_p, penalty;
  const uint8_t* seen;  // (vocabulary) 1 where the penalty applies; null where it is off
  double draw;          // uniform in [0, 1)
};

constexpr int NOT_FINITE = -1;
constexpr int LIKELIEST = 256;  // looked at first where top-k is off: nearly always enough for top-p

class Chooser {
 public:
  int choose(const float* logits, int n, const Choice& choice) {
    row_.resize(n);
    penalise(logits, n, choice);
    const float most = largest(n);
    if (!std::isfinite(most)) return NOT_FINITE;
    if (choice.temperature <= 0) return int(std::find(row_.begin(), row_.end(), most) - row_.begin());
    const double scale = 1.0 / choice.temperature;
    const int wanted = choice.top_k > 0 ? std::min(choice.top_k, n) : n;
    if (wanted < n) {  // all of what counts, those as likely as the last one included
      take(n, wanted);
      weigh(most, scale);
      const double total = std::accumulate(weights_.begin(), weights_.end(), 0.0);
      drop_below(choice.min_p);
      return draw(choice, total, true);
    }
    const double total = whole(n, most, float(scale));
    take(n, std::min(n, LIKELIEST));
    weigh(most, scale);
    const bool all = int(kept_.size()) == n, dropped = drop_below(choice.min_p);
    const int found = draw(choice, total, all || dropped);
    if (found >= 0) return found;
    take(n, n);
    weigh(most, scale);
    return draw(choice, total, true);
  }

 private:
  std::vector<float> row_, peaks_;
  std::vector<int> kept_;        // tokens, likeliest first
  std::vector<double> weights_;  // e^((logit - largest) / temperature)

  void penalise(const float* logits, int n, const Choice& choice) {
    if (!choice.seen) return void(std::copy(logits, logits + n, row_.begin()));
    for (int i = 0; i < n; i++) {
      const float x = logits[i], other = x < 0 ? x * choice.penalty : x / choice.penalty;
      row_[i] = choice.seen[i] ? other : x;
    }
  }

  // Also leaves the largest of every sixteen in `peaks_`. NaN if there is one.
  float largest(int n) {
    peaks_.clear();
    lanes::F16 most = lanes::set1(-INFINITY), check = lanes::zero();
    float rest = -INFINITY;
    int i = 0;
    for (; i + lanes::ROWS <= n; i += lanes::ROWS) {
      const lanes::F16 x = lanes::load(row_.data() + i);
      most = lanes::max(most, x);
      check = lanes::fma(x, lanes::zero(), check);
      peaks_.push_back(lanes::largest(x));
    }
    float bad = lanes::sum(check);
    for (; i < n; i++) rest = std::max(rest, row_[i]), bad += row_[i] * 0.0f, peaks_.push_back(row_[i]);
    return bad == 0 ? std::max(lanes::largest(most), rest) : NAN;
  }

  // The `count` largest and whatever equals the last of them, in descending order: the count-th largest of the sixteens'
  // peaks bounds them from below, and leaves little to sort.
  void take(int n, int count) {
    float least = -INFINITY;
    if (count < int(peaks_.size())) {
      std::vector<float>& peaks = peaks_;
      std::nth_element(peaks.begin(), peaks.begin() + (count - 1), peaks.end(), std::greater<float>());
      least = peaks[count - 1];
    }
    kept_.clear();
    for (int i = 0; i < n; i++)
      if (row_[i] >= least) kept_.push_back(i);
    std::sort(kept_.begin(), kept_.end(), [&](int a, int b) { return row_[a] != row_[b] ? row_[a] > row_[b] : a < b; });
    while (int(kept_.size()) > count && row_[kept_.back()] < row_[kept_[count - 1]]) kept_.pop_back();
  }

  void weigh(float most, double scale) {
    weights_.clear();
    for (const int token : kept_) weights_.push_back(std::exp((row_[token] - most) * scale));
  }

  // Min-p: a weight is its token's probability over the likeliest one's. True if that leaves less than there was, and so all
  // that it leaves of the vocabulary.
  bool drop_below(float min_p) {
    if (min_p <= 0) return false;
    const size_t before = kept_.size();
    while (weights_.back() < min_p) weights_.pop_back(), kept_.pop_back();
    return kept_.size() < before;
  }

  // The sum of all weights.
  double whole(int n, float most, float scale) const {
    lanes::F16 sum = lanes::zero();
    double rest = 0;
    int i = 0;
    for (; i + lanes::ROWS <= n; i += lanes::ROWS) {
      const lanes::F16 x = lanes::sub(lanes::load(row_.data() + i), lanes::set1(most));
      sum = lanes::add(sum, lanes::exponential(lanes::mul(x, lanes::set1(scale))));
    }
    for (; i < n; i++) rest += std::exp((row_[i] - most) * scale);
    return lanes::sum(sum) + rest;
  }

  // By inverting the distribution of those that top-p leaves; -1 if more than `kept_` may belong to them.
  int draw(const Choice& choice, double total, bool all) const {
    const double limit = choice.top_p < 1 ? double(choice.top_p) * total : INFINITY;
    size_t count = 0;
    double before = 0;
    while (count < kept_.size() && (count == 0 || before < limit)) before += weights_[count++];
    if (count == kept_.size() && !all) return -1;
    const double target = choice.draw * before;
    double sum = 0;
    for (size_t at = 0; at < count; at++)
      if ((sum += weights_[at]) > target) return kept_[at];
    return kept_[count - 1];
  }
};

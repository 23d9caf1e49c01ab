// Matrix products: 16 rows of a matrix (a panel) times the inputs of one or more tokens.
//
// Scope: packed matrices, and the arithmetic of one panel. Knows no threads or layers.
//
// 4-bit and 8-bit weights are multiplied by inputs quantized to 14 bits and a sign with a scale for each block of 64: the sums
// over a block are exact integers, and the blocks are added in float32. The 4-bit codebook has 13 bits and a sign (at most
// 2^-13 from its float32 values, closer than bf16 comes to any of them); the scales are bitsandbytes' own in float32.
// bf16, float32 and unscaled int8 weights are multiplied by float32 inputs in float32.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "simd.h"
#include "memory.h"

using simd::Vec16f;
using simd::Vec16i;
using simd::ROWS;

constexpr int BLOCK = 64;
constexpr int INPUT_MAX = 8191, CODE_MAX = 4095;  // 64 of their products stay below 2^31
constexpr int PREFETCH_BYTES = 2048;                // distance of a prefetch

enum class WeightType { F32, BF16, NF4, INT8, INT8_RAW };  // INT8_RAW: the caller applies the scales

// From block `block` on, the outer scale of a row is `value` (bitsandbytes shares one among 256 scales).
struct ScaleChange {
  int block, row;
  float value;
};

// A packed matrix (rows, inputs).
struct Matrix {
  WeightType type;
  int rows, inputs;
  Buffer<uint8_t> weights;           // by panel, then by input
  Buffer<float> scales;              // of INT8, and NF4 without nesting: (panel, block, 16)
  Buffer<uint8_t> nested;            // of NF4 with nested scales: (panel, block, 16), indices into `levels`
  std::vector<ScaleChange> changes;  // sorted by panel, then block
  std::vector<int> first_change;
  float levels[256];
  float offset = 0;
  int16_t codes[16];
  float unit = 1;  // value of 1 in the codebook's fixed point
  std::vector<float> bias;

  int panels() const { return (rows + ROWS - 1) / ROWS; }
  int blocks() const { return (inputs + BLOCK - 1) / BLOCK; }
  bool integer() const { return type == WeightType::NF4 || type == WeightType::INT8; }
  size_t panel_bytes() const {
    const size_t each = type == WeightType::F32 ? 64 : type == WeightType::BF16 ? 32 : type == WeightType::NF4 ? 8 : 16;
    return each * (integer() ? blocks() * BLOCK : inputs);
  }
};

// Inputs of all tokens, in float32 and quantized.
struct Activations {
  const float* values;       // (tokens, value_stride)
  const int16_t* quantized;  // (tokens, stride)
  const float* scales;       // (tokens, stride / 64)
  int stride;                // a multiple of 64
  int value_stride;
};

// Quantizes up to 64 inputs with one scale; the scale is NaN if any of them is not finite.
inline void quantize_block(const float* x, int n, int16_t* quantized, float* scale) {
  Vec16f most = simd::zero(), finite = simd::zero();
  alignas(64) float block[BLOCK] = {};
  if (n < BLOCK) {
    std::memcpy(block, x, n * sizeof(float));
    x = block;
  }
  for (int i = 0; i < BLOCK; i += ROWS) {
    const Vec16f v = simd::load(x + i);
    most = simd::max(most, simd::abs(v));
    finite = simd::fma(v, simd::zero(), finite);
  }
  const float peak = simd::reduce_max(most), check = simd::reduce_add(finite);  // check: 0, or NaN if any is not finite
  const Vec16f factor = simd::set1(peak > 0 && check == 0 ? INPUT_MAX / peak : 0.0f);
  for (int i = 0; i < BLOCK; i += ROWS) simd::store_int16(quantized + i, simd::mul(simd::load(x + i), factor));
  *scale = check == 0 ? peak / INPUT_MAX : check;
}

// Iterates over the scales of one panel, block after block.
struct BlockScales {
  const Matrix& matrix;
  const float* unnested;
  const uint8_t* nested;
  const ScaleChange* change;
  const ScaleChange* end;
  const uint32_t* levels;
  alignas(64) float outer[ROWS] = {};
  alignas(64) volatile uint32_t inner[ROWS];  // volatile: stored one by one, not by a gather

  BlockScales(const Matrix& p, int panel)
      : matrix(p), unnested(nullptr), nested(nullptr), change(nullptr), end(nullptr), levels((const uint32_t*)p.levels) {
    const size_t at = size_t(panel) * p.blocks() * ROWS;
    if (!p.nested.data) {
      unnested = p.scales.data + at;
      return;
    }
    nested = p.nested.data + at;
    change = p.changes.data() + p.first_change[panel];
    end = p.changes.data() + p.first_change[panel + 1];
  }
  // Begins a block: the lookups use the integer units, which are idle while the block is summed (a gather would take a quarter
  // of the block's time from the vector units).
  void begin(int block) {
    if (unnested) return;
    for (; change < end && change->block <= block; change++) outer[change->row] = change->value;
    for (int row = 0; row < ROWS; row++) inner[row] = levels[nested[row]];
    nested += ROWS;
  }
  // Scales of the block's sums.
  Vec16f finish() {
    if (unnested) {
      unnested += ROWS;
      return simd::load(unnested - ROWS);
    }
    return simd::add(simd::mul(simd::load((const float*)inner), simd::load(outer)), simd::set1(matrix.offset));
  }
};

// Unpack the weights of one panel: block(f) calls f(pairs, number of the pair among the block's 32, that number modulo 4 as a
// compile-time constant).
struct Nf4Weights {
  simd::CodeTable table;
  const uint8_t* at;
  explicit Nf4Weights(const Matrix& p, int panel)
      : table(simd::code_table(p.codes)), at(p.weights.data + panel * p.panel_bytes()) {}
  template <class F>
  [[gnu::always_inline]] inline void block(F&& f) {
    for (int group = 0; group < 8; group++, at += 64) {
      _mm_prefetch((const char*)at + PREFETCH_BYTES, _MM_HINT_T0);
      simd::lookup(at, table, [&](simd::WeightPairs w, auto i) __attribute__((always_inline)) { f(w, group * 4 + i, i); });
    }
  }
};

struct Int8Weights {
  const int8_t* at;
  explicit Int8Weights(const Matrix& p, int panel) : at((const int8_t*)p.weights.data + panel * p.panel_bytes()) {}
  template <class F>
  [[gnu::always_inline]] inline void block(F&& f) {
    for (int group = 0; group < 8; group++, at += 8 * ROWS) {
      _mm_prefetch((const char*)at + PREFETCH_BYTES, _MM_HINT_T0);
      _mm_prefetch((const char*)at + PREFETCH_BYTES + 64, _MM_HINT_T0);
      simd::unroll<4>([&](auto i) __attribute__((always_inline)) { f(simd::widen(at + 2 * ROWS * i), group * 4 + i, i); });
    }
  }
};

inline int32_t input_pair(const int16_t* x) {
  int32_t both;
  std::memcpy(&both, x, 4);
  return both;
}

// Independent sums for each of M tokens: a divisor of the four weights that are unpacked together.
constexpr int accumulators(int m) { return simd::SUMS >= 4 * m ? 4 : simd::SUMS >= 2 * m ? 2 : 1; }

// As many tokens as have their sums in registers: the weights go from memory through registers into the sums.
template <int M, class Weights>
void few_tokens(const Matrix& p, int panel, const Activations& in, int token, float* out) {
  constexpr int ACCUMULATORS = accumulators(M);
  Weights weights(p, panel);
  BlockScales scales(p, panel);
  const Vec16f unit = simd::set1(p.unit);
  Vec16f sums[M];
  simd::unroll<M>([&](auto m) { sums[m] = simd::zero(); });
  for (int block = 0; block < p.blocks(); block++) {
    Vec16i dots[M * ACCUMULATORS];
    simd::unroll<M * ACCUMULATORS>([&](auto i) { dots[i] = simd::zero_int(); });
    const int16_t* x = in.quantized + size_t(token) * in.stride + block * BLOCK;
    const size_t stride = in.stride;
    scales.begin(block);
    weights.block([&](simd::WeightPairs w, int number, auto i) __attribute__((always_inline)) {
      simd::unroll<M>([&](auto m) __attribute__((always_inline)) {
        Vec16i& sum = dots[m * ACCUMULATORS + i % ACCUMULATORS];
        sum = simd::dot(sum, w, input_pair(x + m * stride + 2 * number));
      });
    });
    const Vec16f scale = simd::mul(scales.finish(), unit);
    simd::unroll<M>([&](auto m) __attribute__((always_inline)) {
      Vec16i sum = dots[m * ACCUMULATORS];
      simd::unroll<ACCUMULATORS - 1>([&](auto i) { sum = simd::add(sum, dots[m * ACCUMULATORS + i + 1]); });
      const float input_scale = in.scales[size_t(token + m) * (in.stride / BLOCK) + block];
      sums[m] = simd::fma(simd::to_float(sum), simd::mul(scale, simd::set1(input_scale)), sums[m]);
    });
  }
  simd::unroll<M>([&](auto m) { simd::store(out + m * ROWS, sums[m]); });
}

template <int M>
inline void tile_tokens(const int16_t* tile, Vec16f scale, const Activations& in, int token, int block, float* sums) {
  Vec16i dots[M];
  simd::unroll<M>([&](auto m) { dots[m] = simd::zero_int(); });
  const int16_t* x = in.quantized + size_t(token) * in.stride + block * BLOCK;
  const size_t stride = in.stride;
  for (int i = 0; i < BLOCK / 2; i++) {
    const simd::WeightPairs w = simd::load_pair(tile + 2 * ROWS * i);
    simd::unroll<M>([&](auto m) __attribute__((always_inline)) {
      dots[m] = simd::dot(dots[m], w, input_pair(x + m * stride + 2 * i));
    });
  }
  simd::unroll<M>([&](auto m) __attribute__((always_inline)) {
    const float input_scale = in.scales[size_t(token + m) * (in.stride / BLOCK) + block];
    float* sum = sums + m * ROWS;
    simd::store(sum, simd::fma(simd::to_float(dots[m]), simd::mul(scale, simd::set1(input_scale)), simd::load(sum)));
  });
}

// More tokens, where unpacking costs much: a block of weights is decoded once for all of them, into the L1 cache.
template <class Weights>
void many_tokens(const Matrix& p, int panel, const Activations& in, int tokens, float* sums) {
  Weights weights(p, panel);
  BlockScales scales(p, panel);
  alignas(64) int16_t tile[BLOCK * ROWS];
  std::fill(sums, sums + size_t(tokens) * ROWS, 0.0f);
  for (int block = 0; block < p.blocks(); block++) {
    scales.begin(block);
    weights.block([&](simd::WeightPairs w, int number, auto) { simd::store_pair(tile + 2 * ROWS * number, w); });
    const Vec16f scale = simd::mul(scales.finish(), simd::set1(p.unit));
    int token = 0;
    for (; token + 4 <= tokens; token += 4) tile_tokens<4>(tile, scale, in, token, block, sums + token * ROWS);
    for (; token < tokens; token++) tile_tokens<1>(tile, scale, in, token, block, sums + token * ROWS);
  }
}

template <class Weights>
void integer_panel(const Matrix& p, int panel, const Activations& in, int tokens, float* sums) {
  if (simd::SLOW_LOOKUP && tokens > simd::TOKENS) return many_tokens<Weights>(p, panel, in, tokens, sums);
  for (int token = 0; token < tokens; token += simd::TOKENS) {
    simd::with_constant<simd::TOKENS>(std::min(tokens - token, simd::TOKENS), [&](auto m) {
      few_tokens<m, Weights>(p, panel, in, token, sums + token * ROWS);
    });
  }
}

// Every token's sum is added up in the same order however many tokens share the pass, so that an answer does not depend on the
// batch. A single token therefore takes PANELS panels at once to have enough independent sums, `panel_stride` apart.
template <int M, int PANELS, class T>
void dense_tokens(const T* w, size_t panel_size, int n, const float* x, int stride, float* sums, size_t panel_stride) {
  constexpr int STEP = 4 / sizeof(T);  // inputs whose weights fill a cache line
  Vec16f sum[M * PANELS];
  simd::unroll<M * PANELS>([&](auto i) { sum[i] = simd::load(sums + i / M * panel_stride + i % M * ROWS); });
  auto add = [&](int k) __attribute__((always_inline)) {
    simd::unroll<PANELS>([&](auto panel) __attribute__((always_inline)) {
      const Vec16f row = simd::load(w + panel * panel_size + size_t(k) * ROWS);
      simd::unroll<M>([&](auto m) __attribute__((always_inline)) {
        Vec16f& own = sum[panel * M + m];
        own = simd::fma(row, simd::set1(x[size_t(m) * stride + k]), own);
      });
    });
  };
  int k = 0;
  for (; k + STEP <= n; k += STEP) {
    simd::unroll<PANELS>([&](auto panel) {
      _mm_prefetch((const char*)(w + panel * panel_size + size_t(k) * ROWS) + PREFETCH_BYTES, _MM_HINT_T0);
    });
    simd::unroll<STEP>([&](auto i) __attribute__((always_inline)) { add(k + i); });
  }
  for (; k < n; k++) add(k);
  simd::unroll<M * PANELS>([&](auto i) { simd::store(sums + i / M * panel_stride + i % M * ROWS, sum[i]); });
}

// Adds to `sums`; inputs in chunks short enough for the weights to stay in the L1 cache.
template <class T>
void dense_panel(const Matrix& p, int panel, const float* x, int stride, int tokens, float* sums) {
  const T* w = (const T*)(p.weights.data + panel * p.panel_bytes());
  const int chunk = tokens <= simd::TOKENS ? p.inputs : 256;
  for (int k = 0; k < p.inputs; k += chunk, w += size_t(chunk) * ROWS) {
    const int n = std::min(chunk, p.inputs - k);
    for (int token = 0; token < tokens; token += simd::TOKENS) {
      const float* own = x + size_t(token) * stride + k;
      simd::with_constant<simd::TOKENS>(std::min(tokens - token, simd::TOKENS), [&](auto m) {
        dense_tokens<m, 1>(w, 0, n, own, stride, sums + token * ROWS, 0);
      });
    }
  }
}

template <class T>
void dense_panels(const Matrix& p, int panel, int count, const float* x, int stride, int tokens, float* sums,
                  size_t panel_stride) {
  const T* w = (const T*)(p.weights.data + panel * p.panel_bytes());
  const size_t size = p.panel_bytes() / sizeof(T);
  if (tokens == 2 && count == 2) return dense_tokens<2, 2>(w, size, p.inputs, x, stride, sums, panel_stride);
  if (tokens > 1) {
    for (int i = 0; i < count; i++) dense_panel<T>(p, panel + i, x, stride, tokens, sums + i * panel_stride);
    return;
  }
  simd::with_constant<4>(count, [&](auto panels) { dense_tokens<1, panels>(w, size, p.inputs, x, stride, sums, panel_stride); });
}

// Adds the products of up to four panels to their sums (tokens, 16), which are `panel_stride` apart.
inline void dense(const Matrix& p, int panel, int count, const float* x, int stride, int tokens, float* sums,
                  size_t panel_stride) {
  if (p.type == WeightType::F32) return dense_panels<float>(p, panel, count, x, stride, tokens, sums, panel_stride);
  if (p.type == WeightType::INT8_RAW) return dense_panels<int8_t>(p, panel, count, x, stride, tokens, sums, panel_stride);
  dense_panels<uint16_t>(p, panel, count, x, stride, tokens, sums, panel_stride);
}

// sums (count, tokens, 16) = `count` panels of the matrix, one or two, times the inputs, plus the bias.
inline void panel_product(const Matrix& p, int panel, int count, const Activations& in, int tokens, float* sums) {
  const int size = tokens * ROWS;
  if (p.integer()) {
    for (int i = 0; i < count; i++)
      p.type == WeightType::NF4 ? integer_panel<Nf4Weights>(p, panel + i, in, tokens, sums + i * size)
                          : integer_panel<Int8Weights>(p, panel + i, in, tokens, sums + i * size);
  } else {
    std::fill(sums, sums + size_t(count) * size, 0.0f);
    dense(p, panel, count, in.values, in.value_stride, tokens, sums, size);
  }
  if (p.bias.empty()) return;
  for (int i = 0; i < count * tokens; i++) {
    const Vec16f bias = simd::load(p.bias.data() + (panel + i / tokens) * ROWS);
    simd::store(sums + i * ROWS, simd::add(simd::load(sums + i * ROWS), bias));
  }
}

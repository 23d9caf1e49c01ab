// Linear products: 16 rows of a matrix (a panel) against the inputs of 1 to many tokens.
//
// Scope: how a matrix is held, and one panel's arithmetic. Knows nothing of threads and layers.
//
// 4-bit and 8-bit weights meet inputs of 14 bits and a sign, scaled for each 64: the products and the sums over 64 are
// whole numbers, exact; what the blocks give is added in float32. The 4-bit table has 13 bits and a sign (at most 2^-13
// from its float32 values, closer than bf16 comes to any of them), the scales are bitsandbytes' own in float32.
// bf16, float32 and plain bytes meet float32 inputs in float32.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "simd.h"
#include "memory.h"

using lanes::F16;
using lanes::I16;
using lanes::ROWS;

constexpr int BLOCK = 64;
constexpr int INPUT_MOST = 8191, CODE_MOST = 4095;  // 64 of their products stay below 2^31
constexpr int AHEAD = 2048;                         // bytes fetched before they are needed

enum class Kind { F32, BF16, NF4, INT8, BYTES };  // BYTES: whole numbers that somebody else scales

// From input block `block` on, a row's scale of scales is `value` (bitsandbytes shares one by 256 scales in a row).
struct Change {
  int block, row;
  float value;
};

struct Piece {
  Kind kind;
  int rows, inputs;
  Memory<uint8_t> weights;      // by panel, then by inputs
  Memory<float> scales;         // NF4 without nesting, INT8: (panel, block, 16)
  Memory<uint8_t> nested;       // NF4 with nested scales: (panel, block, 16), places in `levels`
  std::vector<Change> changes;  // sorted by panel, then block
  std::vector<int> first_change;
  float levels[256];
  float offset = 0;
  int16_t codes[16];
  float unit = 1;  // what 1 of the table's fixed point is worth
  std::vector<float> bias;

  int panels() const { return (rows + ROWS - 1) / ROWS; }
  int blocks() const { return (inputs + BLOCK - 1) / BLOCK; }
  bool whole_numbers() const { return kind == Kind::NF4 || kind == Kind::INT8; }
  size_t panel_bytes() const {
    const size_t each = kind == Kind::F32 ? 64 : kind == Kind::BF16 ? 32 : kind == Kind::NF4 ? 8 : 16;
    return each * (whole_numbers() ? blocks() * BLOCK : inputs);
  }
};

// Inputs of all tokens, in the forms that pieces want.
struct Inputs {
  const float* exact;
  const int16_t* whole;  // (tokens, stride)
  const float* scales;   // (tokens, stride / 64)
  int stride;            // of `whole`, a multiple of 64; `exact` has exact_stride
  int exact_stride;
};

inline void put_whole(const float* x, int n, int16_t* whole, float* scale) {
  F16 most = lanes::zero(), finite = lanes::zero();
  alignas(64) float block[BLOCK] = {};
  if (n < BLOCK) {
    std::memcpy(block, x, n * sizeof(float));
    x = block;
  }
  for (int i = 0; i < BLOCK; i += ROWS) {
    const F16 v = lanes::load(x + i);
    most = lanes::max(most, lanes::magnitude(v));
    finite = lanes::fma(v, lanes::zero(), finite);
  }
  const float peak = lanes::largest(most), check = lanes::sum(finite);  // 0, or NaN if any is not finite
  const F16 factor = lanes::set1(peak > 0 && check == 0 ? INPUT_MOST / peak : 0.0f);
  for (int i = 0; i < BLOCK; i += ROWS) lanes::store_words(whole + i, lanes::mul(lanes::load(x + i), factor));
  *scale = check == 0 ? peak / INPUT_MOST : check;
}

// Walks the scales of one panel, block after block.
struct Scales {
  const Piece& piece;
  const float* plain;
  const uint8_t* nested;
  const Change* change;
  const Change* end;
  const uint32_t* levels;
  alignas(64) float outer[ROWS] = {};
  alignas(64) volatile uint32_t inner[ROWS];  // volatile: stored one by one, not put together by a gather

  Scales(const Piece& p, int panel)
      : piece(p), plain(nullptr), nested(nullptr), change(nullptr), end(nullptr), levels((const uint32_t*)p.levels) {
    const size_t at = size_t(panel) * p.blocks() * ROWS;
    if (!p.nested.data) {
      plain = p.scales.data + at;
      return;
    }
    nested = p.nested.data + at;
    change = p.changes.data() + p.first_change[panel];
    end = p.changes.data() + p.first_change[panel + 1];
  }
  // Begins a block: the lookups are left to the integer units, which have nothing else to do while the block is summed
  // (a gather would take a quarter of the block's time from the vector units).
  void begin(int block) {
    if (plain) return;
    for (; change < end && change->block <= block; change++) outer[change->row] = change->value;
    for (int row = 0; row < ROWS; row++) inner[row] = levels[nested[row]];
    nested += ROWS;
  }
  // What the block's sums are to be multiplied with.
  F16 finish() {
    if (plain) {
      plain += ROWS;
      return lanes::load(plain - ROWS);
    }
    return lanes::add(lanes::mul(lanes::load((const float*)inner), lanes::load(outer)), lanes::set1(piece.offset));
  }
};

// Sources of weights: block(f) calls f(pair, its number among the 32 of 64 inputs, the same modulo 4 as a constant).
struct Nf4Pairs {
  lanes::Table table;
  const uint8_t* at;
  explicit Nf4Pairs(const Piece& p, int panel) : table(lanes::table(p.codes)), at(p.weights.data + panel * p.panel_bytes()) {}
  template <class F>
  [[gnu::always_inline]] inline void block(F&& f) {
    for (int eight = 0; eight < 8; eight++, at += 64) {
      _mm_prefetch((const char*)at + AHEAD, _MM_HINT_T0);
      lanes::look_up(at, table, [&](lanes::Pair w, auto i) __attribute__((always_inline)) { f(w, eight * 4 + i, i); });
    }
  }
};

struct Int8Pairs {
  const int8_t* at;
  explicit Int8Pairs(const Piece& p, int panel) : at((const int8_t*)p.weights.data + panel * p.panel_bytes()) {}
  template <class F>
  [[gnu::always_inline]] inline void block(F&& f) {
    for (int eight = 0; eight < 8; eight++, at += 8 * ROWS) {
      _mm_prefetch((const char*)at + AHEAD, _MM_HINT_T0);
      _mm_prefetch((const char*)at + AHEAD + 64, _MM_HINT_T0);
      lanes::each<4>([&](auto i) __attribute__((always_inline)) { f(lanes::widen(at + 2 * ROWS * i), eight * 4 + i, i); });
    }
  }
};

inline int32_t two(const int16_t* x) {
  int32_t both;
  std::memcpy(&both, x, 4);
  return both;
}

// Up to four tokens: the weights go from memory to the sums without a stop.
template <int M, class Pairs>
void few(const Piece& p, int panel, const Inputs& in, int token, float* out) {
  constexpr int WAYS = M == 1 ? lanes::WAYS : 1;
  Pairs pairs(p, panel);
  Scales scales(p, panel);
  const F16 unit = lanes::set1(p.unit);
  F16 sums[M];
  lanes::each<M>([&](auto m) { sums[m] = lanes::zero(); });
  for (int block = 0; block < p.blocks(); block++) {
    I16 counts[M * WAYS];
    lanes::each<M * WAYS>([&](auto i) { counts[i] = lanes::nothing(); });
    const int16_t* x = in.whole + size_t(token) * in.stride + block * BLOCK;
    const size_t stride = in.stride;
    scales.begin(block);
    pairs.block([&](lanes::Pair w, int number, auto i) __attribute__((always_inline)) {
      lanes::each<M>([&](auto m) __attribute__((always_inline)) {
        I16& count = counts[m * WAYS + i % WAYS];
        count = lanes::dot(count, w, two(x + m * stride + 2 * number));
      });
    });
    const F16 scale = lanes::mul(scales.finish(), unit);
    lanes::each<M>([&](auto m) __attribute__((always_inline)) {
      I16 count = counts[m * WAYS];
      lanes::each<WAYS - 1>([&](auto way) { count = lanes::add(count, counts[m * WAYS + way + 1]); });
      const float own = in.scales[size_t(token + m) * (in.stride / BLOCK) + block];
      sums[m] = lanes::fma(lanes::floats(count), lanes::mul(scale, lanes::set1(own)), sums[m]);
    });
  }
  lanes::each<M>([&](auto m) { lanes::store(out + m * ROWS, sums[m]); });
}

template <int M>
inline void many_tokens(const int16_t* tile, F16 scale, const Inputs& in, int token, int block, float* sums) {
  I16 counts[M];
  lanes::each<M>([&](auto m) { counts[m] = lanes::nothing(); });
  const int16_t* x = in.whole + size_t(token) * in.stride + block * BLOCK;
  const size_t stride = in.stride;
  for (int i = 0; i < BLOCK / 2; i++) {
    const lanes::Pair w = lanes::load_pair(tile + 2 * ROWS * i);
    lanes::each<M>([&](auto m) __attribute__((always_inline)) { counts[m] = lanes::dot(counts[m], w, two(x + m * stride + 2 * i)); });
  }
  lanes::each<M>([&](auto m) __attribute__((always_inline)) {
    const float own = in.scales[size_t(token + m) * (in.stride / BLOCK) + block];
    float* sum = sums + m * ROWS;
    lanes::store(sum, lanes::fma(lanes::floats(counts[m]), lanes::mul(scale, lanes::set1(own)), lanes::load(sum)));
  });
}

// More tokens: a block of weights is decoded once, into the first-level cache, for all of them.
template <class Pairs>
void many(const Piece& p, int panel, const Inputs& in, int tokens, float* sums) {
  Pairs pairs(p, panel);
  Scales scales(p, panel);
  alignas(64) int16_t tile[BLOCK * ROWS];
  std::fill(sums, sums + size_t(tokens) * ROWS, 0.0f);
  for (int block = 0; block < p.blocks(); block++) {
    scales.begin(block);
    pairs.block([&](lanes::Pair w, int number, auto) { lanes::store_pair(tile + 2 * ROWS * number, w); });
    const F16 scale = lanes::mul(scales.finish(), lanes::set1(p.unit));
    int token = 0;
    for (; token + 4 <= tokens; token += 4) many_tokens<4>(tile, scale, in, token, block, sums + token * ROWS);
    for (; token < tokens; token++) many_tokens<1>(tile, scale, in, token, block, sums + token * ROWS);
  }
}

template <class Pairs>
void whole_panel(const Piece& p, int panel, const Inputs& in, int tokens, float* sums) {
  if (tokens > 4) return many<Pairs>(p, panel, in, tokens, sums);
  switch (tokens) {
    case 1: return few<1, Pairs>(p, panel, in, 0, sums);
    case 2: return few<2, Pairs>(p, panel, in, 0, sums);
    case 3: return few<3, Pairs>(p, panel, in, 0, sums);
    case 4: return few<4, Pairs>(p, panel, in, 0, sums);
  }
}

// Every token's sum is made in the same order, however many share the pass: an answer must not depend on its company. So
// one token alone takes PANELS of weights at once to have enough sums under way; theirs lie `apart` from each other.
template <int M, int PANELS, class T>
void dense_tokens(const T* w, size_t panel_size, int n, const float* x, int stride, float* sums, size_t apart) {
  constexpr int STEP = 4 / sizeof(T);  // inputs whose weights fill a line of the cache
  F16 sum[M * PANELS];
  lanes::each<M * PANELS>([&](auto i) { sum[i] = lanes::load(sums + i / M * apart + i % M * ROWS); });
  auto add = [&](int k) __attribute__((always_inline)) {
    lanes::each<PANELS>([&](auto panel) __attribute__((always_inline)) {
      const F16 row = lanes::load(w + panel * panel_size + size_t(k) * ROWS);
      lanes::each<M>([&](auto m) __attribute__((always_inline)) {
        F16& own = sum[panel * M + m];
        own = lanes::fma(row, lanes::set1(x[size_t(m) * stride + k]), own);
      });
    });
  };
  int k = 0;
  for (; k + STEP <= n; k += STEP) {
    lanes::each<PANELS>([&](auto panel) {
      _mm_prefetch((const char*)(w + panel * panel_size + size_t(k) * ROWS) + AHEAD, _MM_HINT_T0);
    });
    lanes::each<STEP>([&](auto i) __attribute__((always_inline)) { add(k + i); });
  }
  for (; k < n; k++) add(k);
  lanes::each<M * PANELS>([&](auto i) { lanes::store(sums + i / M * apart + i % M * ROWS, sum[i]); });
}

// Adds to `sums`; inputs in stretches short enough for the weights to stay in the first-level cache.
template <class T>
void dense_panel(const Piece& p, int panel, const float* x, int stride, int tokens, float* sums) {
  const T* w = (const T*)(p.weights.data + panel * p.panel_bytes());
  const int stretch = tokens <= 4 ? p.inputs : 256;
  for (int k = 0; k < p.inputs; k += stretch, w += size_t(stretch) * ROWS) {
    const int n = std::min(stretch, p.inputs - k);
    for (int token = 0; token < tokens; token += 4) {
      const float* own = x + size_t(token) * stride + k;
      float* to = sums + token * ROWS;
      switch (std::min(tokens - token, 4)) {
        case 1: dense_tokens<1, 1>(w, 0, n, own, stride, to, 0); break;
        case 2: dense_tokens<2, 1>(w, 0, n, own, stride, to, 0); break;
        case 3: dense_tokens<3, 1>(w, 0, n, own, stride, to, 0); break;
        case 4: dense_tokens<4, 1>(w, 0, n, own, stride, to, 0); break;
      }
    }
  }
}

template <class T>
void dense_panels(const Piece& p, int panel, int count, const float* x, int stride, int tokens, float* sums, size_t apart) {
  const T* w = (const T*)(p.weights.data + panel * p.panel_bytes());
  const size_t size = p.panel_bytes() / sizeof(T);
  if (tokens == 2 && count == 2) return dense_tokens<2, 2>(w, size, p.inputs, x, stride, sums, apart);
  if (tokens > 1) {
    for (int i = 0; i < count; i++) dense_panel<T>(p, panel + i, x, stride, tokens, sums + i * apart);
    return;
  }
  switch (count) {
    case 1: return dense_tokens<1, 1>(w, size, p.inputs, x, stride, sums, apart);
    case 2: return dense_tokens<1, 2>(w, size, p.inputs, x, stride, sums, apart);
    case 3: return dense_tokens<1, 3>(w, size, p.inputs, x, stride, sums, apart);
    case 4: return dense_tokens<1, 4>(w, size, p.inputs, x, stride, sums, apart);
  }
}

// Adds up to four panels' products; the sums of each, (tokens, 16), are `apart` from the next one's.
inline void dense(const Piece& p, int panel, int count, const float* x, int stride, int tokens, float* sums, size_t apart) {
  if (p.kind == Kind::F32) return dense_panels<float>(p, panel, count, x, stride, tokens, sums, apart);
  if (p.kind == Kind::BYTES) return dense_panels<int8_t>(p, panel, count, x, stride, tokens, sums, apart);
  dense_panels<uint16_t>(p, panel, count, x, stride, tokens, sums, apart);
}

// sums (count, tokens, 16) = `count` panels of the piece, one or two, times the inputs, and the bias.
inline void panel_product(const Piece& p, int panel, int count, const Inputs& in, int tokens, float* sums) {
  const int size = tokens * ROWS;
  if (p.whole_numbers()) {
    for (int i = 0; i < count; i++)
      p.kind == Kind::NF4 ? whole_panel<Nf4Pairs>(p, panel + i, in, tokens, sums + i * size)
                          : whole_panel<Int8Pairs>(p, panel + i, in, tokens, sums + i * size);
  } else {
    std::fill(sums, sums + size_t(count) * size, 0.0f);
    dense(p, panel, count, in.exact, in.exact_stride, tokens, sums, size);
  }
  if (p.bias.empty()) return;
  for (int i = 0; i < count * tokens; i++) {
    const F16 bias = lanes::load(p.bias.data() + (panel + i / tokens) * ROWS);
    lanes::store(sums + i * ROWS, lanes::add(lanes::load(sums + i * ROWS), bias));
  }
}

// Packs matrices from the layouts of Hugging Face and bitsandbytes into panels.
//
// Scope: done once, at load. Knows nothing of the multiplication but the order that simd.h defines.
#pragma once
#include <utility>

#include "matmul.h"

inline std::unique_ptr<Matrix> new_matrix(WeightType type, int rows, int inputs, const float* bias) {
  auto matrix = std::make_unique<Matrix>();
  matrix->type = type;
  matrix->rows = rows;
  matrix->inputs = inputs;
  matrix->weights = Buffer<uint8_t>::in_arena(matrix->panels() * matrix->panel_bytes());
  if (bias) {
    matrix->bias.assign(matrix->panels() * ROWS, 0.0f);
    std::copy(bias, bias + rows, matrix->bias.begin());
  }
  return matrix;
}

template <class T>
void pack_dense(Matrix& p, const T* source) {
  for (int row = 0; row < p.rows; row++) {
    T* out = (T*)(p.weights.data + row / ROWS * p.panel_bytes()) + simd::dense_column(row % ROWS, sizeof(T) == 2);
    const T* in = source + size_t(row) * p.inputs;
    for (int k = 0; k < p.inputs; k++) out[size_t(k) * ROWS] = in[k];
  }
}

inline float to_float(uint16_t bf16) {
  const uint32_t bits = uint32_t(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float to_float(float x) { return x; }

// int8 with a scale for each 64 inputs of a row.
template <class T>
void pack_int8(Matrix& p, const T* source) {
  p.scales = Buffer<float>::in_arena(size_t(p.panels()) * p.blocks() * ROWS);
  for (int row = 0; row < p.rows; row++)
    for (int block = 0; block < p.blocks(); block++) {
      const T* in = source + size_t(row) * p.inputs + block * BLOCK;
      const int n = std::min(BLOCK, p.inputs - block * BLOCK);
      float peak = 0;
      for (int k = 0; k < n; k++) peak = std::max(peak, std::fabs(to_float(in[k])));
      p.scales.data[(size_t(row / ROWS) * p.blocks() + block) * ROWS + row % ROWS] = peak / 127;
      int8_t* out = (int8_t*)p.weights.data + row / ROWS * p.panel_bytes() + size_t(block) * BLOCK * ROWS + row % ROWS * 2;
      for (int k = 0; k < n && peak > 0; k++) out[k / 2 * 2 * ROWS + k % 2] = int8_t(std::lrint(to_float(in[k]) / peak * 127));
    }
}

// Picks the fixed-point unit, among those that use 13 bits, with the smallest error over the sixteen values.
inline void quantize_codebook(Matrix& p, const float* code) {
  float peak = 0;
  for (int i = 0; i < 16; i++) peak = std::max(peak, std::fabs(code[i]));
  double best = 1e30;
  for (int top = CODE_MAX * 3 / 4; top <= CODE_MAX; top++) {
    double worst = 0;
    for (int i = 0; i < 16; i++) {
      const double exact = double(code[i]) / peak * top, error = std::fabs(exact - std::nearbyint(exact)) / top;
      worst = std::max(worst, error / std::max(std::fabs(double(code[i]) / peak), 1e-3));
    }
    if (worst >= best) continue;
    best = worst;
    p.unit = peak / float(top);
    for (int i = 0; i < 16; i++) p.codes[i] = int16_t(std::nearbyint(double(code[i]) / peak * top));
  }
}

inline void pack_codes(Matrix& p, const uint8_t* source) {
  const size_t row_bytes = p.inputs / 2;
  for (int row = 0; row < p.rows; row++) {
    uint8_t* out = p.weights.data + row / ROWS * p.panel_bytes();
    const uint8_t* in = source + row * row_bytes;
    for (size_t at = 0; at < row_bytes; at += 4, out += 64) {
      uint32_t eight;
      std::memcpy(&eight, in + at, 4);
      simd::place_codes(out, row % ROWS, eight);
    }
  }
}

// Plain float32 scales, one for each `size` weights in a row.
inline void pack_scales(Matrix& p, const float* source, int size) {
  p.scales = Buffer<float>::in_arena(size_t(p.panels()) * p.blocks() * ROWS);
  for (int row = 0; row < p.rows; row++)
    for (int block = 0; block < p.blocks(); block++)
      p.scales.data[(size_t(row / ROWS) * p.blocks() + block) * ROWS + row % ROWS] =
          source[(size_t(row) * p.inputs + block * BLOCK) / size];
}

// 8-bit scales: levels[source] * outer[one for each `outer_size` scales] + offset.
inline void pack_nested(Matrix& p, const uint8_t* source, int size, const float* levels, const float* outer, int outer_size,
                        float offset) {
  p.nested = Buffer<uint8_t>::in_arena(size_t(p.panels()) * p.blocks() * ROWS);
  std::copy(levels, levels + 256, p.levels);
  p.offset = offset;
  for (int panel = 0; panel < p.panels(); panel++) {
    p.first_change.push_back(int(p.changes.size()));
    for (int block = 0; block < p.blocks(); block++)
      for (int row = 0; row < ROWS; row++) {
        if (panel * ROWS + row >= p.rows) continue;
        const size_t weight = size_t(panel * ROWS + row) * p.inputs + block * BLOCK, scale = weight / size;
        p.nested.data[(size_t(panel) * p.blocks() + block) * ROWS + row] = source[scale];
        const bool changed = block == 0 || (weight - BLOCK) / size / outer_size != scale / outer_size;
        if (changed) p.changes.push_back({block, row, outer[scale / outer_size]});
      }
  }
  p.first_change.push_back(int(p.changes.size()));
}

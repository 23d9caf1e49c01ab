// Unmerged LoRA (Hu 2021): B (scales * (A x)), added to the products of the tokens whose chats have one.
//
// Scope: a LoRA's matrices, and one product's share of it for neighbouring tokens. As in matmul.h, each token's sums run over
// the inputs in one order, so the rest of the batch does not matter. Knows no threads or layers.
#pragma once
#include "matmul.h"

// A LoRA's share of one product.
struct LoraProduct {
  std::unique_ptr<Matrix> a;               // A of the product's matrices, stacked; null where the LoRA adds nothing
  std::vector<std::unique_ptr<Matrix>> b;  // one for each matrix of the product, or null
  std::vector<int> offsets;                // first output of `a` for each matrix
  std::vector<float> scales;               // one for each rank
};

struct Lora {
  std::vector<LoraProduct> products;  // four a layer, in the order of the pass, and the head
};

// Neighbouring tokens with the same LoRA.
struct LoraRun {
  const Lora* lora;
  int first, end;
  int tokens() const { return end - first; }
};

// Panels of an A that one task computes: for a single token as many as keep all cores equally busy.
inline int panels_per_task(const LoraProduct& lora, int tokens, int workers) {
  return tokens > 1 ? 1 : std::clamp((lora.a->panels() + workers - 1) / workers, 1, 4);
}
inline int tasks(const LoraRun& run, int product, int workers) {
  const LoraProduct& lora = run.lora->products[product];
  if (!lora.a) return 0;
  const int step = panels_per_task(lora, run.tokens(), workers);
  return (lora.a->panels() + step - 1) / step;
}

// out (tokens, stride) = scales * A x, panels [panel, panel + count).
inline void lora_a(const LoraProduct& lora, int panel, int count, const float* x, int x_stride, int tokens, float* sums,
                   float* out, int stride) {
  std::fill(sums, sums + size_t(count) * tokens * ROWS, 0.0f);
  dense(*lora.a, panel, count, x, x_stride, tokens, sums, size_t(tokens) * ROWS);
  for (int i = 0; i < count; i++)
    for (int m = 0; m < tokens; m++)
      for (int row = 0; row < std::min(ROWS, lora.a->rows - (panel + i) * ROWS); row++)
        out[size_t(m) * stride + (panel + i) * ROWS + row] =
            sums[(i * tokens + m) * ROWS + row] * lora.scales[(panel + i) * ROWS + row];
}

// sums += B times the outputs of lora_a, for `count` panels of a matrix, whose sums are `panel_stride` apart.
inline void lora_b(const LoraProduct& lora, size_t matrix, int panel, int count, const float* in, int stride, int tokens,
                   float* sums, size_t panel_stride) {
  if (!lora.a || !lora.b[matrix]) return;
  dense(*lora.b[matrix], panel, count, in + lora.offsets[matrix], stride, tokens, sums, panel_stride);
}

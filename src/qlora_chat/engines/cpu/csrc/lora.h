// LoRAs beside the products (Hu 2021): B (scales * (A x)), for the tokens whose chats have one.
//
// Scope: how a LoRA is held, and one product's share of it for neighbouring tokens. Each token's sums run over the inputs
// in one order, as product.h's do, so its company does not matter. Knows nothing of threads and layers.
#pragma once
#include "matmul.h"

struct LowRank {                           // what a LoRA adds to one product
  std::unique_ptr<Piece> a;                // those of its pieces, one below the other; null where it adds nothing
  std::vector<std::unique_ptr<Piece>> b;   // one a piece of the product, or null
  std::vector<int> at;                     // where a piece's ranks begin among the outputs of `a`
  std::vector<float> scales;               // a factor a rank
};

struct Lora {
  std::vector<LowRank> products;  // four a layer, in the order of the pass, and the head
};

// Neighbouring tokens with the same LoRA.
struct Run {
  const Lora* lora;
  int first, end;
  int tokens() const { return end - first; }
};

// What a task takes of an A, in panels: for one token as many as keep both a core and its neighbours busy.
inline int panels_a_task(const LowRank& low, int tokens, int members) {
  return tokens > 1 ? 1 : std::clamp((low.a->panels() + members - 1) / members, 1, 4);
}
inline int tasks(const Run& run, int place, int members) {
  const LowRank& low = run.lora->products[place];
  if (!low.a) return 0;
  const int step = panels_a_task(low, run.tokens(), members);
  return (low.a->panels() + step - 1) / step;
}

// out (tokens, stride) = scales * A x, panels [panel, panel + count).
inline void low_rank_in(const LowRank& low, int panel, int count, const float* x, int x_stride, int tokens, float* sums,
                        float* out, int stride) {
  std::fill(sums, sums + size_t(count) * tokens * ROWS, 0.0f);
  dense(*low.a, panel, count, x, x_stride, tokens, sums, size_t(tokens) * ROWS);
  for (int i = 0; i < count; i++)
    for (int m = 0; m < tokens; m++)
      for (int row = 0; row < std::min(ROWS, low.a->rows - (panel + i) * ROWS); row++)
        out[size_t(m) * stride + (panel + i) * ROWS + row] = sums[(i * tokens + m) * ROWS + row] * low.scales[(panel + i) * ROWS + row];
}

// sums += B times what low_rank_in gave, for `count` panels of a piece whose sums are `apart` from each other.
inline void low_rank_out(const LowRank& low, size_t piece, int panel, int count, const float* in, int stride, int tokens,
                         float* sums, size_t apart) {
  if (!low.a || !low.b[piece]) return;
  dense(*low.b[piece], panel, count, in + low.at[piece], stride, tokens, sums, apart);
}

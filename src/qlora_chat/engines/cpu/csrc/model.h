// A pass of a LLaMA: N tokens through all layers, by a team that meets between the phases.
//
// Scope: norms, rotary positions, attention over the cache, the order of products. A token is its id, its slot and its
// position: it sees positions 0 to its own of its slot, those of this pass included. Knows no prompts and no sampling.
#pragma once
#include "attention.h"
#include "lora.h"
#include "pack.h"
#include "thread_pool.h"

struct Product {
  std::vector<Piece*> pieces;  // their outputs side by side
  int outputs = 0;
  bool whole_numbers = false;
};

struct Layer {
  const float *attention_norm, *mlp_norm;
  Product *qkv, *attention_out, *gate_up, *mlp_down;
};

struct Shape {
  int layers, hidden, heads, kv_heads, head_dim, feed_forward, vocabulary, window;
  float norm_eps;
};

constexpr int MOST_TOKENS = 128;  // through the layers at once; longer passes go in parts

class Model {
 public:
  Shape shape;
  std::vector<Layer> layers;
  const float* norm = nullptr;
  Product* head = nullptr;
  const void* embeddings = nullptr;
  bool embeddings_are_bf16 = false;
  const float *cos = nullptr, *sin = nullptr;  // (window, head_dim / 2)
  CacheView cache;
  Team team;

  Model(const Shape& s, int members) : shape(s), layers(s.layers), team(members), low_tasks_(4 * s.layers + 1) {
    for (int id = 0; id < members; id++) scratch_.emplace_back(size_t(shape.window) + 2 * MOST_TOKENS * ROWS + 64);
  }

  // Logits (outputs, vocabulary) of the tokens numbered `wanted`, ascending. `loras`, one a token or null: null for none.
  void pass(int tokens, const int64_t* ids, const int64_t* slots, const int64_t* positions, const Lora* const* loras,
            int outputs, const int64_t* wanted, float* logits) {
    reserve(std::min(tokens, MOST_TOKENS));
    for (int first = 0; first < tokens; first += MOST_TOKENS) {
      const int n = std::min(MOST_TOKENS, tokens - first);
      int mine = 0;
      while (mine < outputs && wanted[mine] < first + n) mine++;
      n_ = n, ids_ = ids + first, slots_ = slots + first, positions_ = positions + first;
      wanted_ = wanted, outputs_ = mine, first_ = first, logits_ = logits;
      adapt(loras ? loras + first : nullptr);
      team.run([](void* model, int id, uint64_t& phase) { ((Model*)model)->member(id, phase); }, this);
      wanted += mine, outputs -= mine, logits += size_t(mine) * shape.vocabulary;
    }
  }

 private:
  int n_ = 0, outputs_ = 0, first_ = 0;
  const int64_t *ids_ = nullptr, *slots_ = nullptr, *positions_ = nullptr, *wanted_ = nullptr;
  float* logits_ = nullptr;
  Memory<float> hidden_, input_, scales_, wide_, seen_, low_;
  Memory<int16_t> whole_;
  int stride_ = 0, input_stride_ = 0, wide_stride_ = 0, low_stride_ = 0;
  std::vector<Run> runs_, head_runs_;  // read in tasks only: a member that comes too late may find those of another pass
  std::vector<int> low_tasks_;         // by place, as in Lora; never moves, for the same reason
  std::vector<Memory<float>> scratch_;  // one a member

  int query_width() const { return shape.heads * shape.head_dim; }

  void reserve(int tokens) {
    if (hidden_.size >= size_t(tokens) * shape.hidden) return;
    const int widest_in = std::max({shape.hidden, shape.feed_forward, query_width()});
    stride_ = (widest_in + BLOCK - 1) / BLOCK * BLOCK;
    input_stride_ = stride_;
    wide_stride_ = std::max(2 * shape.feed_forward, query_width() + 2 * shape.kv_heads * shape.head_dim);
    hidden_ = Memory<float>(size_t(tokens) * shape.hidden);
    input_ = Memory<float>(size_t(tokens) * input_stride_ + BLOCK);
    whole_ = Memory<int16_t>(size_t(tokens) * stride_);
    scales_ = Memory<float>(size_t(tokens) * (stride_ / BLOCK));
    wide_ = Memory<float>(size_t(tokens) * wide_stride_);
  }

  // Who has which LoRA, and how many tasks that makes at each place.
  void adapt(const Lora* const* loras) {
    runs_.clear(), head_runs_.clear();
    auto add = [](std::vector<Run>& runs, const Lora* lora, int token) {
      if (!lora) return;
      if (!runs.empty() && runs.back().lora == lora && runs.back().end == token) runs.back().end++;
      else runs.push_back({lora, token, token + 1});
    };
    for (int token = 0; loras && token < n_; token++) add(runs_, loras[token], token);
    for (int row = 0; loras && row < outputs_; row++) add(head_runs_, loras[wanted_[row] - first_], row);
    for (size_t place = 0; place < low_tasks_.size(); place++) {
      low_tasks_[place] = 0;
      for (const Run& run : runs_at(int(place))) low_tasks_[place] += tasks(run, int(place), team.members());
    }
    int widest = 0;
    for (const Run& run : runs_)
      for (const LowRank& low : run.lora->products) widest = std::max(widest, low.a ? low.a->rows : 0);
    low_stride_ = std::max(low_stride_, widest);
    if (low_.size < size_t(n_) * low_stride_) low_ = Memory<float>(size_t(n_) * low_stride_);
  }

  int head_place() const { return 4 * shape.layers; }
  const std::vector<Run>& runs_at(int place) const { return place == head_place() ? head_runs_ : runs_; }

  void member(int id, uint64_t& phase) {
    embed(id, phase);
    for (size_t index = 0; index < layers.size(); index++) {
      const Layer& layer = layers[index];
      const int place = 4 * int(index);
      normed(id, phase, layer.attention_norm, n_, nullptr, *layer.qkv);
      product(id, phase, place, *layer.qkv, n_, wide_.data, wide_stride_, false);
      keep(id, phase, int(index));
      attend(id, phase, int(index));
      rounded(id, phase, query_width(), *layer.attention_out);
      product(id, phase, place + 1, *layer.attention_out, n_, hidden_.data, shape.hidden, true);
      normed(id, phase, layer.mlp_norm, n_, nullptr, *layer.gate_up);
      product(id, phase, place + 2, *layer.gate_up, n_, wide_.data, wide_stride_, false);
      gated(id, phase, *layer.mlp_down);
      product(id, phase, place + 3, *layer.mlp_down, n_, hidden_.data, shape.hidden, true);
    }
    if (outputs_ == 0) return;
    normed(id, phase, norm, outputs_, wanted_, *head);
    product(id, phase, head_place(), *head, outputs_, logits_, shape.vocabulary, false);
  }

  void embed(int id, uint64_t& phase) {
    team.share(id, phase, n_, 1, [&](int token, int) {
      float* out = hidden_.data + size_t(token) * shape.hidden;
      const size_t at = size_t(ids_[token]) * shape.hidden;
      for (int i = 0; i < shape.hidden; i++)
        out[i] = embeddings_are_bf16 ? wide(((const uint16_t*)embeddings)[at + i]) : ((const float*)embeddings)[at + i];
    });
  }

  // Root mean square norm (Zhang and Sennrich 2019) of tokens, all or those wanted, as the inputs of a product.
  void normed(int id, uint64_t& phase, const float* weight, int count, const int64_t* which, const Product& next) {
    team.share(id, phase, count, 1, [&](int row, int) {
      const int token = which ? int(which[row]) - first_ : row;
      const float* x = hidden_.data + size_t(token) * shape.hidden;
      float* out = input_.data + size_t(row) * input_stride_;
      const float mean = dot(x, x, shape.hidden) / float(shape.hidden);
      const float factor = 1.0f / std::sqrt(mean + shape.norm_eps);
      for (int i = 0; i < shape.hidden; i++) out[i] = x[i] * factor * weight[i];
      round_row(row, 0, shape.hidden, next);
    });
  }

  void round_row(int row, int from, int to, const Product& next) {
    if (!next.whole_numbers) return;
    const float* x = input_.data + size_t(row) * input_stride_;
    for (int at = from; at < to; at += BLOCK)
      put_whole(x + at, std::min(BLOCK, to - at), whole_.data + size_t(row) * stride_ + at,
                scales_.data + (size_t(row) * stride_ + at) / BLOCK);
  }

  void rounded(int id, uint64_t& phase, int width, const Product& next) {
    if (!next.whole_numbers) return;
    constexpr int RUN = 1024;
    const int runs = (width + RUN - 1) / RUN;
    team.share(id, phase, n_ * runs, 1, [&](int task, int) {
      const int from = task % runs * RUN;
      round_row(task / runs, from, std::min(width, from + RUN), next);
    });
  }

  void product(int id, uint64_t& phase, int place, const Product& p, int count, float* out, int stride, bool onto) {
    const Inputs in{input_.data, whole_.data, scales_.data, stride_, input_stride_};
    float* sums = scratch_[id].data + shape.window;
    const bool adapted = low_tasks_[place] > 0;
    uint64_t low = 0;
    if (adapted)
      low = team.begin(id, phase, low_tasks_[place], 1, [&](int task, int) { low_rank(place, task, sums); });
    int panels = 0;
    for (const Piece* piece : p.pieces) panels += piece->panels();
    const int run = std::clamp(panels / (8 * team.members()) & ~1, 2, 4);
    team.share(id, phase, panels, run, [&](int first, int end) {
      while (first < end) {
        int own = first, column = 0;
        size_t at = 0;
        for (; own >= p.pieces[at]->panels(); at++) own -= p.pieces[at]->panels(), column += p.pieces[at]->rows;
        const Piece& piece = *p.pieces[at];
        const int size = count * ROWS, both = std::min({2, end - first, piece.panels() - own});
        panel_product(piece, own, both, in, count, sums);
        if (adapted) {
          team.await(low);
          for (const Run& each : runs_at(place))
            low_rank_out(each.lora->products[place], at, own, both, low_.data + size_t(each.first) * low_stride_, low_stride_,
                         each.tokens(), sums + each.first * ROWS, size);
        }
        for (int i = 0; i < both; i++) put(sums + i * size, count, piece.rows, own + i, out + column, stride, onto);
        first += both;
      }
    });
  }

  // A x of the LoRAs at a place, a task of them all.
  void low_rank(int place, int task, float* sums) {
    for (const Run& run : runs_at(place)) {
      const int own = tasks(run, place, team.members());
      if (task >= own) {
        task -= own;
        continue;
      }
      const LowRank& low = run.lora->products[place];
      const int step = panels_a_task(low, run.tokens(), team.members()), panel = task * step;
      return low_rank_in(low, panel, std::min(step, low.a->panels() - panel),
                         input_.data + size_t(run.first) * input_stride_, input_stride_, run.tokens(), sums,
                         low_.data + size_t(run.first) * low_stride_, low_stride_);
    }
  }

  static void put(const float* sums, int count, int rows, int panel, float* out, int stride, bool onto) {
    const int n = std::min(ROWS, rows - panel * ROWS);
    for (int m = 0; m < count; m++) {
      float* to = out + size_t(m) * stride + panel * ROWS;
      for (int i = 0; i < n; i++) to[i] = onto ? to[i] + sums[m * ROWS + i] : sums[m * ROWS + i];
    }
  }

  // Rotates queries and keys, and writes keys and values into the cache.
  void keep(int id, uint64_t& phase, int layer) {
    const int d = shape.head_dim, group = shape.heads / shape.kv_heads;
    team.share(id, phase, n_ * shape.kv_heads, 2, [&](int first, int end) {
      for (int task = first; task < end; task++) {
        const int token = task / shape.kv_heads, head = task % shape.kv_heads;
        float* row = wide_.data + size_t(token) * wide_stride_;
        float *key = row + query_width() + head * d, *value = key + shape.kv_heads * d;
        const int64_t position = positions_[token];
        const float *c = cos + position * (d / 2), *s = sin + position * (d / 2);
        for (int query = head * group; query < (head + 1) * group; query++) rotate(row + query * d, c, s, d);
        rotate(key, c, s, d);
        cache.write(cache.keys, layer, slots_[token], head, position, key);
        cache.write(cache.values, layer, slots_[token], head, position, value);
      }
    });
  }

  void attend(int id, uint64_t& phase, int layer) {
    const int group = shape.heads / shape.kv_heads, d = shape.head_dim;
    float* scores = scratch_[id].data;
    team.share(id, phase, n_ * shape.heads, 1, [&](int task, int) {
      const int token = task / shape.heads, head = task % shape.heads;
      attention(cache, layer, slots_[token], head / group, wide_.data + size_t(token) * wide_stride_ + head * d,
                int(positions_[token]) + 1, scores, input_.data + size_t(token) * input_stride_ + head * d);
    });
  }

  // silu(gate) * up, as the inputs of the next product.
  void gated(int id, uint64_t& phase, const Product& next) {
    constexpr int RUN = 512;
    const int width = shape.feed_forward, runs = (width + RUN - 1) / RUN;
    team.share(id, phase, n_ * runs, 1, [&](int task, int) {
      const int token = task / runs, from = task % runs * RUN, to = std::min(width, from + RUN);
      const float* gate = wide_.data + size_t(token) * wide_stride_;
      float* out = input_.data + size_t(token) * input_stride_;
      int i = from;
      for (; i + ROWS <= to; i += ROWS) {
        const F16 g = lanes::load(gate + i), up = lanes::load(gate + width + i);
        const F16 e = lanes::exponential(lanes::sub(lanes::zero(), g));
        lanes::store(out + i, lanes::mul(lanes::div(g, lanes::add(lanes::set1(1.0f), e)), up));
      }
      for (; i < to; i++) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * gate[width + i];
      round_row(token, from, to, next);
    });
  }
};

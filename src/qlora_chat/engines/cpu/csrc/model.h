// Forward pass of a LLaMA: N tokens through all layers, in phases on a thread pool.
//
// Scope: norms, rotary positions, attention over the cache, the order of products. A token has an id, a slot and a position,
// and sees positions 0 to its own of its slot, including those of this pass. Knows no prompts or sampling.
#pragma once
#include "attention.h"
#include "lora.h"
#include "pack.h"
#include "thread_pool.h"

// Several matrices of the same inputs; their outputs are concatenated.
struct Product {
  std::vector<Matrix*> matrices;
  int outputs = 0;
  bool integer = false;
};

struct Layer {
  const float *attention_norm, *mlp_norm;
  Product *qkv, *attention_out, *gate_up, *mlp_down;
  const float *query_norm = nullptr, *key_norm = nullptr;  // (head_dim); null in families that do not normalize heads
};

struct Shape {
  int layers, hidden, heads, kv_heads, head_dim, feed_forward, vocabulary, window;
  float norm_eps;
};

constexpr int MAX_TOKENS = 128;  // in the layers at once; longer passes are split

class Model {
 public:
  Shape shape;
  std::vector<Layer> layers;
  const float* norm = nullptr;
  Product* head = nullptr;
  const void* embeddings = nullptr;
  bool embeddings_are_bf16 = false;
  const float *cos = nullptr, *sin = nullptr;  // (window, head_dim / 2)
  KVCacheView cache;
  ThreadPool pool;

  Model(const Shape& s, int workers) : shape(s), layers(s.layers), pool(workers), lora_tasks_(4 * s.layers + 1) {
    for (int id = 0; id < workers; id++) scratch_.emplace_back(size_t(shape.window) + 2 * MAX_TOKENS * ROWS + 64);
  }

  // Logits (outputs, vocabulary) of the tokens with the ascending indices `output_tokens`. `loras`: null, or for each token its
  // LoRA or null.
  void forward(int tokens, const int64_t* ids, const int64_t* slots, const int64_t* positions, const Lora* const* loras,
               int outputs, const int64_t* output_tokens, float* logits) {
    reserve(std::min(tokens, MAX_TOKENS));
    for (int first = 0; first < tokens; first += MAX_TOKENS) {
      const int n = std::min(MAX_TOKENS, tokens - first);
      int outputs_here = 0;
      while (outputs_here < outputs && output_tokens[outputs_here] < first + n) outputs_here++;
      n_ = n, ids_ = ids + first, slots_ = slots + first, positions_ = positions + first;
      output_tokens_ = output_tokens, outputs_ = outputs_here, first_ = first, logits_ = logits;
      plan_loras(loras ? loras + first : nullptr);
      pool.run([](void* model, int id, uint64_t& phase) { ((Model*)model)->worker(id, phase); }, this);
      output_tokens += outputs_here, outputs -= outputs_here, logits += size_t(outputs_here) * shape.vocabulary;
    }
  }

 private:
  int n_ = 0, outputs_ = 0, first_ = 0;
  const int64_t *ids_ = nullptr, *slots_ = nullptr, *positions_ = nullptr, *output_tokens_ = nullptr;
  float* logits_ = nullptr;
  Buffer<float> hidden_, input_, scales_, fused_, lora_;
  Buffer<int16_t> quantized_;
  int stride_ = 0, input_stride_ = 0, fused_stride_ = 0, lora_stride_ = 0;
  std::vector<LoraRun> runs_, head_runs_;  // read in tasks only: for a late worker they may be those of another pass
  std::vector<int> lora_tasks_;            // by product, as in Lora; never reallocated, for the same reason
  std::vector<Buffer<float>> scratch_;     // one for each worker

  int query_width() const { return shape.heads * shape.head_dim; }

  void reserve(int tokens) {
    if (hidden_.size >= size_t(tokens) * shape.hidden) return;
    const int widest_in = std::max({shape.hidden, shape.feed_forward, query_width()});
    stride_ = (widest_in + BLOCK - 1) / BLOCK * BLOCK;
    input_stride_ = stride_;
    fused_stride_ = std::max(2 * shape.feed_forward, query_width() + 2 * shape.kv_heads * shape.head_dim);
    hidden_ = Buffer<float>(size_t(tokens) * shape.hidden);
    input_ = Buffer<float>(size_t(tokens) * input_stride_ + BLOCK);
    quantized_ = Buffer<int16_t>(size_t(tokens) * stride_);
    scales_ = Buffer<float>(size_t(tokens) * (stride_ / BLOCK));
    fused_ = Buffer<float>(size_t(tokens) * fused_stride_);
  }

  // Groups the tokens by LoRA, and counts the tasks of each product.
  void plan_loras(const Lora* const* loras) {
    runs_.clear(), head_runs_.clear();
    auto add = [](std::vector<LoraRun>& runs, const Lora* lora, int token) {
      if (!lora) return;
      if (!runs.empty() && runs.back().lora == lora && runs.back().end == token) runs.back().end++;
      else runs.push_back({lora, token, token + 1});
    };
    for (int token = 0; loras && token < n_; token++) add(runs_, loras[token], token);
    for (int row = 0; loras && row < outputs_; row++) add(head_runs_, loras[output_tokens_[row] - first_], row);
    for (size_t index = 0; index < lora_tasks_.size(); index++) {
      lora_tasks_[index] = 0;
      for (const LoraRun& run : runs_at(int(index))) lora_tasks_[index] += tasks(run, int(index), pool.workers());
    }
    int widest = 0;
    for (const LoraRun& run : runs_)
      for (const LoraProduct& lora : run.lora->products) widest = std::max(widest, lora.a ? lora.a->rows : 0);
    lora_stride_ = std::max(lora_stride_, widest);
    if (lora_.size < size_t(n_) * lora_stride_) lora_ = Buffer<float>(size_t(n_) * lora_stride_);
  }

  int head_index() const { return 4 * shape.layers; }
  const std::vector<LoraRun>& runs_at(int product_index) const { return product_index == head_index() ? head_runs_ : runs_; }

  void worker(int id, uint64_t& phase) {
    embed(id, phase);
    for (size_t index = 0; index < layers.size(); index++) {
      const Layer& layer = layers[index];
      const int product_index = 4 * int(index);
      rms_norm(id, phase, layer.attention_norm, n_, nullptr, *layer.qkv);
      product(id, phase, product_index, *layer.qkv, n_, fused_.data, fused_stride_, false);
      write_cache(id, phase, int(index));
      attend(id, phase, int(index));
      quantize_rows(id, phase, query_width(), *layer.attention_out);
      product(id, phase, product_index + 1, *layer.attention_out, n_, hidden_.data, shape.hidden, true);
      rms_norm(id, phase, layer.mlp_norm, n_, nullptr, *layer.gate_up);
      product(id, phase, product_index + 2, *layer.gate_up, n_, fused_.data, fused_stride_, false);
      silu_gate(id, phase, *layer.mlp_down);
      product(id, phase, product_index + 3, *layer.mlp_down, n_, hidden_.data, shape.hidden, true);
    }
    if (outputs_ == 0) return;
    rms_norm(id, phase, norm, outputs_, output_tokens_, *head);
    product(id, phase, head_index(), *head, outputs_, logits_, shape.vocabulary, false);
  }

  void embed(int id, uint64_t& phase) {
    pool.parallel_for(id, phase, n_, 1, [&](int token, int) {
      float* out = hidden_.data + size_t(token) * shape.hidden;
      const size_t at = size_t(ids_[token]) * shape.hidden;
      for (int i = 0; i < shape.hidden; i++)
        out[i] = embeddings_are_bf16 ? to_float(((const uint16_t*)embeddings)[at + i]) : ((const float*)embeddings)[at + i];
    });
  }

  // Root mean square norm (Zhang and Sennrich 2019) of all tokens or those of the indices `which`, as the inputs of a product.
  void rms_norm(int id, uint64_t& phase, const float* weight, int count, const int64_t* which, const Product& next) {
    pool.parallel_for(id, phase, count, 1, [&](int row, int) {
      const int token = which ? int(which[row]) - first_ : row;
      const float* x = hidden_.data + size_t(token) * shape.hidden;
      float* out = input_.data + size_t(row) * input_stride_;
      const float mean = dot(x, x, shape.hidden) / float(shape.hidden);
      const float factor = 1.0f / std::sqrt(mean + shape.norm_eps);
      for (int i = 0; i < shape.hidden; i++) out[i] = x[i] * factor * weight[i];
      quantize_row(row, 0, shape.hidden, next);
    });
  }

  void quantize_row(int row, int from, int to, const Product& next) {
    if (!next.integer) return;
    const float* x = input_.data + size_t(row) * input_stride_;
    for (int at = from; at < to; at += BLOCK)
      quantize_block(x + at, std::min(BLOCK, to - at), quantized_.data + size_t(row) * stride_ + at,
                     scales_.data + (size_t(row) * stride_ + at) / BLOCK);
  }

  void quantize_rows(int id, uint64_t& phase, int width, const Product& next) {
    if (!next.integer) return;
    constexpr int RUN = 1024;
    const int runs = (width + RUN - 1) / RUN;
    pool.parallel_for(id, phase, n_ * runs, 1, [&](int task, int) {
      const int from = task % runs * RUN;
      quantize_row(task / runs, from, std::min(width, from + RUN), next);
    });
  }

  void product(int id, uint64_t& phase, int product_index, const Product& p, int count, float* out, int stride,
               bool accumulate) {
    const Activations in{input_.data, quantized_.data, scales_.data, stride_, input_stride_};
    float* sums = scratch_[id].data + shape.window;
    const bool adapted = lora_tasks_[product_index] > 0;
    uint64_t lora_phase = 0;
    if (adapted)
      lora_phase = pool.begin_phase(id, phase, lora_tasks_[product_index], 1,
                                    [&](int task, int) { lora_task(product_index, task, sums); });
    int panels = 0;
    for (const Matrix* matrix : p.matrices) panels += matrix->panels();
    const int run = std::clamp(panels / (8 * pool.workers()) & ~1, 2, 4);
    pool.parallel_for(id, phase, panels, run, [&](int first, int end) {
      while (first < end) {
        int own = first, column = 0;
        size_t at = 0;
        for (; own >= p.matrices[at]->panels(); at++) own -= p.matrices[at]->panels(), column += p.matrices[at]->rows;
        const Matrix& matrix = *p.matrices[at];
        const int size = count * ROWS, both = std::min({2, end - first, matrix.panels() - own});
        panel_product(matrix, own, both, in, count, sums);
        if (adapted) {
          pool.wait(lora_phase);
          for (const LoraRun& each : runs_at(product_index))
            lora_b(each.lora->products[product_index], at, own, both, lora_.data + size_t(each.first) * lora_stride_,
                   lora_stride_, each.tokens(), sums + each.first * ROWS, size);
        }
        for (int i = 0; i < both; i++) store(sums + i * size, count, matrix.rows, own + i, out + column, stride, accumulate);
        first += both;
      }
    });
  }

  // One task of all LoRAs of a product: part of A x.
  void lora_task(int product_index, int task, float* sums) {
    for (const LoraRun& run : runs_at(product_index)) {
      const int own = tasks(run, product_index, pool.workers());
      if (task >= own) {
        task -= own;
        continue;
      }
      const LoraProduct& lora = run.lora->products[product_index];
      const int step = panels_per_task(lora, run.tokens(), pool.workers()), panel = task * step;
      return lora_a(lora, panel, std::min(step, lora.a->panels() - panel),
                    input_.data + size_t(run.first) * input_stride_, input_stride_, run.tokens(), sums,
                    lora_.data + size_t(run.first) * lora_stride_, lora_stride_);
    }
  }

  static void store(const float* sums, int count, int rows, int panel, float* out, int stride, bool accumulate) {
    const int n = std::min(ROWS, rows - panel * ROWS);
    for (int m = 0; m < count; m++) {
      float* to = out + size_t(m) * stride + panel * ROWS;
      for (int i = 0; i < n; i++) to[i] = accumulate ? to[i] + sums[m * ROWS + i] : sums[m * ROWS + i];
    }
  }

  // Normalizes one head of queries or keys in place.
  void norm_head(float* x, const float* weight) const {
    const float factor = 1.0f / std::sqrt(dot(x, x, shape.head_dim) / float(shape.head_dim) + shape.norm_eps);
    for (int i = 0; i < shape.head_dim; i++) x[i] *= factor * weight[i];
  }

  // Normalizes (where the family does) and rotates queries and keys, and writes keys and values into the cache.
  void write_cache(int id, uint64_t& phase, int layer) {
    const int d = shape.head_dim, group = shape.heads / shape.kv_heads;
    pool.parallel_for(id, phase, n_ * shape.kv_heads, 2, [&](int first, int end) {
      for (int task = first; task < end; task++) {
        const int token = task / shape.kv_heads, head = task % shape.kv_heads;
        float* row = fused_.data + size_t(token) * fused_stride_;
        float *key = row + query_width() + head * d, *value = key + shape.kv_heads * d;
        const int64_t position = positions_[token];
        const float *c = cos + position * (d / 2), *s = sin + position * (d / 2);
        if (const Layer& own = layers[layer]; own.query_norm) {
          for (int query = head * group; query < (head + 1) * group; query++) norm_head(row + query * d, own.query_norm);
          norm_head(key, own.key_norm);
        }
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
    pool.parallel_for(id, phase, n_ * shape.heads, 1, [&](int task, int) {
      const int token = task / shape.heads, head = task % shape.heads;
      attention(cache, layer, slots_[token], head / group, fused_.data + size_t(token) * fused_stride_ + head * d,
                int(positions_[token]) + 1, scores, input_.data + size_t(token) * input_stride_ + head * d);
    });
  }

  // silu(gate) * up, as the inputs of the next product.
  void silu_gate(int id, uint64_t& phase, const Product& next) {
    constexpr int RUN = 512;
    const int width = shape.feed_forward, runs = (width + RUN - 1) / RUN;
    pool.parallel_for(id, phase, n_ * runs, 1, [&](int task, int) {
      const int token = task / runs, from = task % runs * RUN, to = std::min(width, from + RUN);
      const float* gate = fused_.data + size_t(token) * fused_stride_;
      float* out = input_.data + size_t(token) * input_stride_;
      int i = from;
      for (; i + ROWS <= to; i += ROWS) {
        const Vec16f g = simd::load(gate + i), up = simd::load(gate + width + i);
        const Vec16f e = simd::exp(simd::sub(simd::zero(), g));
        simd::store(out + i, simd::mul(simd::div(g, simd::add(simd::set1(1.0f), e)), up));
      }
      for (; i < to; i++) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * gate[width + i];
      quantize_row(token, from, to, next);
    });
  }
};

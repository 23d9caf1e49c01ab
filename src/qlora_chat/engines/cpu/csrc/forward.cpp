// The C interface for forward.py: packs matrices, builds a model, runs passes. Comments say which pointers are retained (their
// owner must keep them alive) and which objects a call owns afterwards.
#include <mutex>

#include "sampler.h"
#include "model.h"

namespace {

// No exception may cross the interface: null or 0 means that memory ran out.
template <class F>
auto guarded(F&& f) -> decltype(f()) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    return {};
  }
}

}  // namespace

extern "C" {

const char* simd_name() { return simd::name(); }

// `size`: bytes of a weight: 4 for float32, 2 for bf16, 1 for int8 to which the caller applies the scales.
Matrix* matrix_dense(int size, const void* weight, int rows, int inputs, const float* bias) {
  return guarded([&] {
    const auto type = size == 1 ? WeightType::INT8_RAW : size == 2 ? WeightType::BF16 : WeightType::F32;
    auto matrix = new_matrix(type, rows, inputs, bias);
    if (size == 1) pack_dense(*matrix, (const int8_t*)weight);
    else if (size == 2) pack_dense(*matrix, (const uint16_t*)weight);
    else pack_dense(*matrix, (const float*)weight);
    return matrix.release();
  });
}

Matrix* matrix_int8(int bf16, const void* weight, int rows, int inputs, const float* bias) {
  return guarded([&] {
    auto matrix = new_matrix(WeightType::INT8, rows, inputs, bias);
    if (bf16) pack_int8(*matrix, (const uint16_t*)weight);
    else pack_int8(*matrix, (const float*)weight);
    return matrix.release();
  });
}

// `scales`: float32, one for `size` weights; with `levels`, bytes: levels[byte] * outer[one for outer_size scales] + offset.
Matrix* matrix_nf4(const uint8_t* packed, int rows, int inputs, const float* bias, const float* code, const void* scales,
                   int size, const float* levels, const float* outer, int outer_size, float offset) {
  return guarded([&] {
    auto matrix = new_matrix(WeightType::NF4, rows, inputs, bias);
    quantize_codebook(*matrix, code);
    pack_codes(*matrix, packed);
    if (levels) pack_nested(*matrix, (const uint8_t*)scales, size, levels, outer, outer_size, offset);
    else pack_scales(*matrix, (const float*)scales, size);
    return matrix.release();
  });
}

// Owns the matrices.
Product* product_new(Matrix** matrices, int count) {
  return guarded([&] {
    auto product = std::make_unique<Product>();
    product->matrices.assign(matrices, matrices + count);
    for (const Matrix* each : product->matrices) {
      product->outputs += each->rows;
      product->integer |= each->integer();
    }
    return product.release();
  });
}

// A LoRA that adds nothing to any product yet.
Lora* lora_new(int products) {
  return guarded([&] {
    auto lora = std::make_unique<Lora>();
    lora->products.resize(products);
    return lora.release();
  });
}

// Owns A and the Bs: one for each matrix of the product, or null. The ranks of A are in the order of the Bs, and `scales` has a
// factor for each rank.
int lora_product(Lora* lora, int index, Matrix* a, Matrix** b, int matrices, const float* scales) {
  return guarded([&] {
    LoraProduct& product = lora->products[index];
    product.a.reset(a);
    product.scales.assign(scales, scales + a->rows);
    int at = 0;
    for (int i = 0; i < matrices; i++) {
      product.b.emplace_back(b[i]);
      product.offsets.push_back(at);
      at += b[i] ? b[i]->inputs : 0;
    }
    return 1;
  });
}

// Not during a pass that uses it.
void lora_free(Lora* lora) { delete lora; }

int64_t product_bytes(const Product* product) {
  int64_t total = 0;
  for (const Matrix* each : product->matrices)
    total += each->weights.size + each->nested.size + each->scales.size * sizeof(float);
  return total;
}

Model* model_new(const int32_t* sizes, float norm_eps, int workers) {
  return guarded([&] {
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], norm_eps};
    return std::make_unique<Model>(shape, workers).release();
  });
}

// Retains the pointers to the norms; owns the products.
void model_layer(Model* model, int index, const float* attention_norm, const float* mlp_norm, Product* qkv,
                 Product* attention_out, Product* gate_up, Product* mlp_down) {
  model->layers[index] = {attention_norm, mlp_norm, qkv, attention_out, gate_up, mlp_down};
}

// Retains the pointers, each to (head_dim) weights.
void model_head_norms(Model* model, int index, const float* query_norm, const float* key_norm) {
  model->layers[index].query_norm = query_norm;
  model->layers[index].key_norm = key_norm;
}

// Retains all pointers; owns the head.
void model_ends(Model* model, const void* embeddings, int bf16, const float* norm, Product* head, const float* cos,
                const float* sin) {
  model->embeddings = embeddings;
  model->embeddings_are_bf16 = bf16 != 0;
  model->norm = norm;
  model->head = head;
  model->cos = cos;
  model->sin = sin;
}

// Retains the pointers. `float16`: type of the cache, else float32.
void model_cache(Model* model, void* keys, void* values, int float16, int slots) {
  const Shape& s = model->shape;
  model->cache = {keys, values, float16 != 0, slots, s.kv_heads, s.window, s.head_dim};
}

// `loras`: null, or for each token its LoRA or null. Returns 0 if memory ran out.
int model_forward(Model* model, int tokens, const int64_t* ids, const int64_t* slots, const int64_t* positions,
                  const Lora* const* loras, int outputs, const int64_t* output_tokens, float* logits) {
  return guarded([&] {
    model->forward(tokens, ids, slots, positions, loras, outputs, output_tokens, logits);
    return 1;
  });
}

// Samples a token, or NOT_FINITE, for each row of logits (rows, vocabulary). Returns 0 if memory ran out.
int sample_tokens(int rows, int vocabulary, const float* logits, const SamplerInput* inputs, int64_t* tokens) {
  return guarded([&] {
    thread_local Sampler sampler;
    for (int row = 0; row < rows; row++)
      tokens[row] = sampler.sample(logits + size_t(row) * vocabulary, vocabulary, inputs[row]);
    return 1;
  });
}

void product_free(Product* product) {
  if (!product) return;
  for (Matrix* each : product->matrices) delete each;
  delete product;
}

void model_free(Model* model) {
  model->pool.close();
  for (const Layer& each : model->layers)
    for (Product* product : {each.qkv, each.attention_out, each.gate_up, each.mlp_down}) product_free(product);
  product_free(model->head);
  delete model;
}
}

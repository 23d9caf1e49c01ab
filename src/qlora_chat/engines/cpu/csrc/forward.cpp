// What forward.py calls: matrices in, then passes. Pointers that a call keeps, and their owner keeps alive, are said so.
#include <mutex>

#include "sampler.h"
#include "model.h"

namespace {

// Nothing may be thrown across the border: null or 0 says that memory ran out.
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

const char* cpu_lanes() { return lanes::name(); }

// `each`: bytes of a weight: 4 for float32, 2 for bf16, 1 for whole numbers that somebody else scales.
Piece* piece_dense(int each, const void* weight, int rows, int inputs, const float* bias) {
  return guarded([&] {
    auto piece = new_piece(each == 1 ? Kind::BYTES : each == 2 ? Kind::BF16 : Kind::F32, rows, inputs, bias);
    if (each == 1) pack_dense(*piece, (const int8_t*)weight);
    else if (each == 2) pack_dense(*piece, (const uint16_t*)weight);
    else pack_dense(*piece, (const float*)weight);
    return piece.release();
  });
}

Piece* piece_int8(int bf16, const void* weight, int rows, int inputs, const float* bias) {
  return guarded([&] {
    auto piece = new_piece(Kind::INT8, rows, inputs, bias);
    if (bf16) pack_int8(*piece, (const uint16_t*)weight);
    else pack_int8(*piece, (const float*)weight);
    return piece.release();
  });
}

// `scales` are float32, one a `size` weights; or, with `levels`, bytes: levels[byte] * outer[of outer_size] + offset.
Piece* piece_nf4(const uint8_t* packed, int rows, int inputs, const float* bias, const float* code, const void* scales, int size,
                 const float* levels, const float* outer, int outer_size, float offset) {
  return guarded([&] {
    auto piece = new_piece(Kind::NF4, rows, inputs, bias);
    fix_codes(*piece, code);
    pack_codes(*piece, packed);
    if (levels) pack_nested(*piece, (const uint8_t*)scales, size, levels, outer, outer_size, offset);
    else pack_scales(*piece, (const float*)scales, size);
    return piece.release();
  });
}

// Takes the pieces over.
Product* product_new(Piece** pieces, int count) {
  return guarded([&] {
    auto product = std::make_unique<Product>();
    product->pieces.assign(pieces, pieces + count);
    for (const Piece* each : product->pieces) {
      product->outputs += each->rows;
      product->whole_numbers |= each->whole_numbers();
    }
    return product.release();
  });
}

// Nothing at any of the places yet.
Lora* lora_new(int places) {
  return guarded([&] {
    auto lora = std::make_unique<Lora>();
    lora->products.resize(places);
    return lora.release();
  });
}

// Takes A and the Bs over: one for each piece of the product, or null. The ranks of A lie in their order, and `scales` has
// a factor for each.
int lora_product(Lora* lora, int place, Piece* a, Piece** b, int pieces, const float* scales) {
  return guarded([&] {
    LowRank& low = lora->products[place];
    low.a.reset(a);
    low.scales.assign(scales, scales + a->rows);
    int at = 0;
    for (int i = 0; i < pieces; i++) {
      low.b.emplace_back(b[i]);
      low.at.push_back(at);
      at += b[i] ? b[i]->inputs : 0;
    }
    return 1;
  });
}

// Not while a pass runs in which somebody has it.
void lora_free(Lora* lora) { delete lora; }

int64_t product_bytes(const Product* product) {
  int64_t total = 0;
  for (const Piece* each : product->pieces)
    total += each->weights.size + each->nested.size + each->scales.size * sizeof(float);
  return total;
}

Model* model_new(const int32_t* sizes, float norm_eps, int members) {
  return guarded([&] {
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], norm_eps};
    return std::make_unique<Model>(shape, members).release();
  });
}

// Keeps the norms' pointers; takes the products over.
void model_layer(Model* model, int index, const float* attention_norm, const float* mlp_norm, Product* qkv,
                 Product* attention_out, Product* gate_up, Product* mlp_down) {
  model->layers[index] = {attention_norm, mlp_norm, qkv, attention_out, gate_up, mlp_down};
}

// Keeps all pointers; takes the head over.
void model_ends(Model* model, const void* embeddings, int bf16, const float* norm, Product* head, const float* cos,
                const float* sin) {
  model->embeddings = embeddings;
  model->embeddings_are_bf16 = bf16 != 0;
  model->norm = norm;
  model->head = head;
  model->cos = cos;
  model->sin = sin;
}

// Keeps the pointers.
void model_cache(Model* model, void* keys, void* values, int halves, int slots) {
  const Shape& s = model->shape;
  model->cache = {keys, values, halves != 0, slots, s.kv_heads, s.window, s.head_dim};
}

// `loras`: one a token, or null; null where nobody has one.
int model_pass(Model* model, int tokens, const int64_t* ids, const int64_t* slots, const int64_t* positions,
               const Lora* const* loras, int outputs, const int64_t* wanted, float* logits) {
  return guarded([&] {
    model->pass(tokens, ids, slots, positions, loras, outputs, wanted, logits);
    return 1;
  });
}

// A token, or NOT_FINITE, for each row of logits (rows, vocabulary). 0 if memory ran out.
int choose_tokens(int rows, int vocabulary, const float* logits, const Choice* choices, int64_t* tokens) {
  return guarded([&] {
    thread_local Chooser chooser;
    for (int row = 0; row < rows; row++)
      tokens[row] = chooser.choose(logits + size_t(row) * vocabulary, vocabulary, choices[row]);
    return 1;
  });
}

void product_free(Product* product) {
  if (!product) return;
  for (Piece* each : product->pieces) delete each;
  delete product;
}

void model_free(Model* model) {
  model->team.close();
  for (const Layer& each : model->layers)
    for (Product* product : {each.qkv, each.attention_out, each.gate_up, each.mlp_down}) product_free(product);
  product_free(model->head);
  delete model;
}
}

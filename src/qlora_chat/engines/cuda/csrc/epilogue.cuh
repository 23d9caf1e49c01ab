// Epilogues of a matrix product, for outputs r and r + 8 of a tile: `Product` is any struct with these fields.
// Rounding is explicit where a compiler could choose which of two products to fuse with a sum: kernels for other numbers of rows
// must round alike.
#define ROPE_AND_CACHE 0   // RoPE on queries and keys; keys and values to the cache, or (KV8) to the buffer that quantize_kv reads
#define ADD_TO_RESIDUAL 1  // and apply the next norm's weight, store partial sums of squares
#define SILU_TIMES_UP 2
#define STORE 3
#define STORE_QKV 4         // q, k and v with their adapters, for norm_and_rope in head_norms.cu

// Apply RoPE (RoFormer, Su 2021; halves of a head as pairs) and store the query, key or value.
template <class Product> __device__ __forceinline__ void store_rope(const Product& p, int tile, int r, int column, float v0, float v1) {
  const int position = p.rows.positions[column], slot = p.rows.slots[column], half = p.head_dim / 2;
  const int tiles_a_head = p.head_dim / 16, head = tile / tiles_a_head, within = tile % tiles_a_head;
  const bool is_value = head >= p.heads + p.kv_heads;
  const int d = is_value ? within * 16 + r : within * 8 + r, apart = is_value ? 8 : half;  // the pair's elements in the head are d and d + apart
  if (!is_value) {
    const float2 cos_sin = p.rope_cos_sin[(size_t)position * half + d];
    const float first = __fmaf_rn(v0, cos_sin.x, -__fmul_rn(v1, cos_sin.y));
    v1 = __fmaf_rn(v1, cos_sin.x, __fmul_rn(v0, cos_sin.y));
    v0 = first;
  }
  const int kv_head = head - p.heads - (is_value ? p.kv_heads : 0);
  if (head < p.heads) {
    float* out = p.out + ((size_t)column * p.heads + head) * p.head_dim;
    out[d] = v0;
    out[d + apart] = v1;
    return;
  }
#if KV8
  NewElement* new_kv = (is_value ? p.values : p.keys) + ((size_t)column * p.kv_heads + kv_head) * p.head_dim;
  new_kv[d] = v0;
  new_kv[d + apart] = v1;
#else
  u16* cache = (is_value ? p.values : p.keys) + (((size_t)slot * p.kv_heads + kv_head) * p.window + position) * p.head_dim;
  cache[d] = float_to_bf16(v0);
  cache[d + apart] = float_to_bf16(v1);
#endif
}

// Swizzled column of a row's sum in output r's line of an item's sums: eight lanes read one row's without bank conflicts.
#define SUM_COLUMN(r, column) ((column) ^ ((r) & 4))

// Store a tile's partial sum of squares of a row, reduced over the eight lanes that finish it, in a fixed order.
template <class Product>
__device__ __forceinline__ void store_squares(const Product& p, int tile, int r, int column, bool is_there, float square) {
  if (p.epilogue != ADD_TO_RESIDUAL) return;
#pragma unroll
  for (int offset = 4; offset > 0; offset >>= 1) square += __shfl_xor_sync(0xffffffffu, square, offset);
  if (is_there && r == 0) p.squares_out[column * MAX_PARTIALS + tile] = square;
}

// Finish one pair of outputs of one row. Returns the residual's squares.
template <class Product> __device__ __forceinline__ float apply_epilogue(const Product& p, int tile, int r, int column, float v0, float v1, float scale) {
  v0 = __fmul_rn(v0, scale);
  v1 = __fmul_rn(v1, scale);
  if (p.bias) {
    v0 = __fadd_rn(v0, p.bias[tile * 16 + r]);
    v1 = __fadd_rn(v1, p.bias[tile * 16 + r + 8]);
  }
  if (p.epilogue == ROPE_AND_CACHE) {
    store_rope(p, tile, r, column, v0, v1);
    return 0.0f;
  }
  if (p.epilogue == SILU_TIMES_UP) {
    p.x_out[(size_t)column * p.outputs + tile * 8 + r] = float_to_bf16(v0 / (1.0f + __expf(-v0)) * v1);
    return 0.0f;
  }
  const int n = tile * 16 + r;
  const bool stores = p.epilogue == STORE || p.epilogue == STORE_QKV;
  float* out = (stores ? p.out : p.residual) + (size_t)column * p.outputs;
  if (stores) {
    if (n < p.outputs) out[n] = v0;
    if (n + 8 < p.outputs) out[n + 8] = v1;
    return 0.0f;
  }
  const float h0 = out[n] + v0, h1 = out[n + 8] + v1;
  out[n] = h0;
  out[n + 8] = h1;
  u16* x = p.x_out + (size_t)column * p.outputs;
  x[n] = float_to_bf16(h0 * bf16_to_float(p.norm[n]));
  x[n + 8] = float_to_bf16(h1 * bf16_to_float(p.norm[n + 8]));
  return __fmaf_rn(h0, h0, __fmul_rn(h1, h1));
}

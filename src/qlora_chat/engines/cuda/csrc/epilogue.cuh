// What is done with a product's outputs r and r + 8 of a tile, for whoever computed them: `Product` is any struct with these fields.
// Roundings are spelt out where a compiler could choose which of two products to fuse with a sum: kernels for other numbers of rows
// must not choose otherwise.

// What follows the product.
#define ROTATE_AND_CACHE 0  // queries and keys turned by their position; keys and values into the cache, or (KV8) on the way to it
#define ADD_TO_RESIDUAL 1   // and the next norm's weight applied, sums of squares kept
#define SILU_TIMES_UP 2
#define STORE 3

// Queries and keys turned by their position (RoFormer, Su 2021; halves of a head as pairs); each to where it belongs.
template <class Product> __device__ __forceinline__ void store_rotated(const Product& p, int tile, int r, int column, float v0, float v1) {
  const int position = p.rows.positions[column], slot = p.rows.slots[column], half = p.head_dim / 2;
  const int tiles_a_head = p.head_dim / 16, head = tile / tiles_a_head, within = tile % tiles_a_head;
  const bool is_value = head >= p.heads + p.kv_heads;
  const int d = is_value ? within * 16 + r : within * 8 + r, apart = is_value ? 8 : half;  // of the pair, in the head
  if (!is_value) {
    const float2 turn = p.turns[(size_t)position * half + d];
    const float first = __fmaf_rn(v0, turn.x, -__fmul_rn(v1, turn.y));
    v1 = __fmaf_rn(v1, turn.x, __fmul_rn(v0, turn.y));
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
  Newest* newest = (is_value ? p.values : p.keys) + ((size_t)column * p.kv_heads + kv_head) * p.head_dim;
  newest[d] = v0;
  newest[d + apart] = v1;
#else
  u16* cache = (is_value ? p.values : p.keys) + (((size_t)slot * p.kv_heads + kv_head) * p.window + position) * p.head_dim;
  cache[d] = float_to_bf16(v0);
  cache[d + apart] = float_to_bf16(v1);
#endif
}

// Where in a line of an item's sums, of output r, a row's sum lies: so that eight lanes can read those of one row at once.
#define SUM_COLUMN(r, column) ((column) ^ ((r) & 4))

// Of the eight lanes that finish a row's outputs in a tile: the tile's part of the sum of squares, in an order that never changes.
template <class Product>
__device__ __forceinline__ void leave_squares(const Product& p, int tile, int r, int column, bool is_there, float square) {
  if (p.epilogue != ADD_TO_RESIDUAL) return;
#pragma unroll
  for (int offset = 4; offset > 0; offset >>= 1) square += __shfl_xor_sync(0xffffffffu, square, offset);
  if (is_there && r == 0) p.squares_out[column * MOST_PARTIALS + tile] = square;
}

// One pair of outputs of one row. Returns the residual's squares.
template <class Product> __device__ __forceinline__ float finish(const Product& p, int tile, int r, int column, float v0, float v1, float scale) {
  v0 = __fmul_rn(v0, scale);
  v1 = __fmul_rn(v1, scale);
  if (p.bias) {
    v0 = __fadd_rn(v0, p.bias[tile * 16 + r]);
    v1 = __fadd_rn(v1, p.bias[tile * 16 + r + 8]);
  }
  if (p.epilogue == ROTATE_AND_CACHE) {
    store_rotated(p, tile, r, column, v0, v1);
    return 0.0f;
  }
  if (p.epilogue == SILU_TIMES_UP) {
    p.x_out[(size_t)column * p.outputs + tile * 8 + r] = float_to_bf16(v0 / (1.0f + __expf(-v0)) * v1);
    return 0.0f;
  }
  const int n = tile * 16 + r;
  float* out = (p.epilogue == STORE ? p.out : p.residual) + (size_t)column * p.outputs;
  if (p.epilogue == STORE) {
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

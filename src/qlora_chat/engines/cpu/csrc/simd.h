// Sixteen rows at a time, in the registers that this CPU has: AVX-512 (with VNNI where it exists) or AVX2.
//
// Scope: vectors of 16 floats (F16), of 16 integer sums (I16) and of 16 rows by two 16-bit weights (Pair), what is done
// with them, and the order in which 4-bit codes lie so that a table lookup yields Pairs. Knows nothing of matrices.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define WIDE 1
#elif !(defined(__AVX2__) && defined(__FMA__) && defined(__F16C__))
#error "neither AVX-512 nor AVX2 with FMA and F16C"
#endif

namespace lanes {

constexpr int ROWS = 16;
#ifdef WIDE
constexpr int WAYS = 4;  // independent sums for one token: a multiply-and-add takes four cycles
#else
constexpr int WAYS = 1;  // the sum itself takes one cycle
#endif

// f(0) to f(N - 1) with numbers known to the compiler: sums in an array that a loop runs over would go through memory.
template <class F, int... I>
[[gnu::always_inline]] inline void each_of(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
[[gnu::always_inline]] inline void each(F&& f) {
  each_of(std::make_integer_sequence<int, N>{}, f);
}
template <int I>
constexpr std::integral_constant<int, I> number{};

#ifdef WIDE

struct F16 { __m512 v; };
struct I16 { __m512i v; };
struct Pair { __m512i v; };
struct Table { __m512i words; };

inline const char* name() {
#ifdef __AVX512VNNI__
  return "avx512-vnni";
#else
  return "avx512";
#endif
}
inline F16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F16 load(const uint16_t* bf16) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)bf16)), 16))};
}
inline F16 load(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline F16 load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline void store(float* p, F16 x) { _mm512_storeu_ps(p, x.v); }
inline void store_half(uint16_t* p, F16 x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x.v, 0)); }
inline F16 add(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 sub(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 mul(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 div(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// A NaN in b is kept, one in a is not.
inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F16 magnitude(F16 a) { return {_mm512_abs_ps(a.v)}; }
inline F16 nearest(F16 a) { return {_mm512_roundscale_ps(a.v, 0)}; }
inline F16 power_of_two(F16 n) {  // n whole, from -126 to 127
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}
inline float sum(F16 a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(F16 a) { return _mm512_reduce_max_ps(a.v); }
inline void store_words(int16_t* p, F16 x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x.v)));
}

inline I16 nothing() { return {_mm512_setzero_si512()}; }
inline I16 add(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline F16 floats(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I16 dot(I16 sum, Pair w, int32_t two) {
#ifdef __AVX512VNNI__
  return {_mm512_dpwssd_epi32(sum.v, w.v, _mm512_set1_epi32(two))};
#else
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(w.v, _mm512_set1_epi32(two)))};
#endif
}
inline Pair load_pair(const int16_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_pair(int16_t* p, Pair w) { _mm512_storeu_si512(p, w.v); }
inline Pair widen(const int8_t* p) { return {_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p))}; }

inline Table table(const int16_t* sixteen) {
  const __m256i half = _mm256_loadu_si256((const __m256i*)sixteen);
  return {_mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1)};  // bit 4 of an index is another weight's: ignore it
}
// The weights of 16 rows and 8 inputs from 64 bytes: f(pair, which of the four).
template <class F>
[[gnu::always_inline]] inline void look_up(const uint8_t* codes, const Table& t, F&& f) {
  const __m512i v = _mm512_loadu_si512(codes);
  f(Pair{_mm512_permutexvar_epi16(v, t.words)}, number<0>);
  f(Pair{_mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4), t.words)}, number<1>);
  f(Pair{_mm512_permutexvar_epi16(_mm512_srli_epi16(v, 8), t.words)}, number<2>);
  f(Pair{_mm512_permutexvar_epi16(_mm512_srli_epi16(v, 12), t.words)}, number<3>);
}
// Eight codes of one row, as bitsandbytes packs them (4 bytes, the earlier code in the higher half), to their places.
inline void place(uint8_t* codes, int row, uint32_t eight) {
  const uint32_t even = eight & 0x00FF00FFu, odd = (eight >> 8) & 0x00FF00FFu;
  const uint32_t first = ((even >> 4) & 0x000F000Fu) | (odd & 0x00F000F0u);
  const uint32_t second = (even & 0x000F000Fu) | ((odd & 0x000F000Fu) << 4);
  const uint16_t words[2] = {uint16_t((first & 0xFF) | (first >> 8)), uint16_t((second & 0xFF) | (second >> 8))};
  std::memcpy(codes + 4 * row, words, 4);
}
// Where a bf16 or float of row r lies among the sixteen of one input, and where a byte of (row, which of two inputs).
inline int dense_place(int row, bool) { return row; }

#else

struct F16 { __m256 a, b; };
struct I16 { __m256i a, b; };
struct Pair { __m256i a, b; };
struct Table { __m256i low, high; };

inline const char* name() { return "avx2"; }
inline F16 set1(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline F16 load(const uint16_t* bf16) {  // rows 0-7 in the even words, 8-15 in the odd
  const __m256i v = _mm256_loadu_si256((const __m256i*)bf16);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(v, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xFFFF0000u)))};
}
inline F16 load(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
inline F16 load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline void store(float* p, F16 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
inline void store_half(uint16_t* p, F16 x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, 0));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, 0));
}
inline F16 add(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F16 sub(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F16 mul(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F16 div(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F16 fma(F16 x, F16 y, F16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
// A NaN in y is kept, one in x is not.
inline F16 max(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F16 min(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F16 magnitude(F16 x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
inline F16 nearest(F16 x) {
  constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, how), _mm256_round_ps(x.b, how)};
}
inline __m256 power_of_two(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline F16 power_of_two(F16 n) { return {power_of_two(n.a), power_of_two(n.b)}; }  // n whole, from -126 to 127
inline float sum(F16 x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(F16 x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline void store_words(int16_t* p, F16 x) {
  const __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(mixed, 0xD8));
}

inline I16 nothing() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I16 add(I16 x, I16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline F16 floats(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I16 dot(I16 sum, Pair w, int32_t two) {
  const __m256i x = _mm256_set1_epi32(two);
  return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(w.a, x)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(w.b, x))};
}
inline Pair load_pair(const int16_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 16))};
}
inline void store_pair(int16_t* p, Pair w) {
  _mm256_storeu_si256((__m256i*)p, w.a);
  _mm256_storeu_si256((__m256i*)(p + 16), w.b);
}
inline Pair widen(const int8_t* p) {
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p + 16)))};
}

inline Table table(const int16_t* sixteen) {
  alignas(32) uint8_t low[32], high[32];
  for (int i = 0; i < 32; i++) {
    low[i] = uint8_t(uint16_t(sixteen[i % 16]) & 0xFF);
    high[i] = uint8_t(uint16_t(sixteen[i % 16]) >> 8);
  }
  return {_mm256_load_si256((const __m256i*)low), _mm256_load_si256((const __m256i*)high)};
}
inline Pair look_up(__m256i index, const Table& t) {
  const __m256i low = _mm256_shuffle_epi8(t.low, index), high = _mm256_shuffle_epi8(t.high, index);
  return {_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)};
}
// The weights of 16 rows and 8 inputs from 64 bytes: f(pair, which of the four).
template <class F>
[[gnu::always_inline]] inline void look_up(const uint8_t* codes, const Table& t, F&& f) {
  const __m256i mask = _mm256_set1_epi8(0x0F);
  each<2>([&](auto half) __attribute__((always_inline)) {
    const __m256i v = _mm256_loadu_si256((const __m256i*)(codes + 32 * half));
    f(look_up(_mm256_and_si256(v, mask), t), number<2 * half>);
    f(look_up(_mm256_and_si256(_mm256_srli_epi16(v, 4), mask), t), number<2 * half + 1>);
  });
}
// Eight codes of one row, as bitsandbytes packs them (4 bytes, the earlier code in the higher half), to their places.
inline void place(uint8_t* codes, int row, uint32_t eight) {
  const uint32_t even = eight & 0x00FF00FFu, odd = (eight >> 8) & 0x00FF00FFu;
  const uint32_t first = ((even >> 4) & 0x000F000Fu) | (odd & 0x00F000F0u);
  const uint32_t second = (even & 0x000F000Fu) | ((odd & 0x000F000Fu) << 4);
  const uint32_t both = first | (second << 8);
  const uint16_t words[2] = {uint16_t(both), uint16_t(both >> 16)};
  const int at = (row % 8) / 4 * 16 + row / 8 * 8 + row % 4 * 2;
  std::memcpy(codes + at, words, 2);
  std::memcpy(codes + 32 + at, words + 1, 2);
}
// Where a bf16 (or a float) of row r lies among the sixteen of one input.
inline int dense_place(int row, bool bf16) { return bf16 ? row % 8 * 2 + row / 8 : row; }

#endif

inline F16 zero() { return set1(0.0f); }

// e^x to 2 units in the last place (range reduction by ln 2, polynomial of degree 6); NaN stays NaN.
inline F16 exponential(F16 x) {
  x = min(set1(88.0f), max(set1(-87.0f), x));
  const F16 n = nearest(mul(x, set1(1.44269504088896341f)));
  F16 r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F16 p = set1(1.0f / 720);
  for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, set1(c));
  return mul(p, power_of_two(n));
}

}  // namespace lanes

// SIMD over sixteen rows: AVX-512 (with VNNI where the CPU has it) or AVX2.
//
// Scope: vectors of 16 floats (Vec16f), of 16 int32 sums (Vec16i) and of 16 rows by two int16 weights (WeightPairs), the
// operations on them, and the order of packed 4-bit codes, from which a table lookup yields WeightPairs. Knows no matrices.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define USE_AVX512 1
#elif !(defined(__AVX2__) && defined(__FMA__) && defined(__F16C__))
#error "neither AVX-512 nor AVX2 with FMA and F16C"
#endif

namespace simd {

constexpr int ROWS = 16;  // of a panel
#ifdef USE_AVX512
constexpr int TOKENS = 8;            // tokens whose sums stay in registers
constexpr int SUMS = 8;              // independent sums that keep the units busy: a multiply-add takes four cycles
constexpr bool SLOW_LOOKUP = false;  // unpacking four bits is one instruction
#else
constexpr int TOKENS = 4;
constexpr int SUMS = 1;  // the addition alone takes one cycle
constexpr bool SLOW_LOOKUP = true;
#endif

// Calls f(0) to f(N - 1) with compile-time constants: sums in an array indexed by a loop would go through memory.
template <class F, int... I>
[[gnu::always_inline]] inline void unroll_sequence(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
[[gnu::always_inline]] inline void unroll(F&& f) {
  unroll_sequence(std::make_integer_sequence<int, N>{}, f);
}
template <int I>
constexpr std::integral_constant<int, I> constant{};

// Calls f(n) with n, from 1 to N, as a compile-time constant.
template <int N, class F>
inline void with_constant(int n, F&& f) {
  if constexpr (N > 1) {
    if (n < N) return with_constant<N - 1>(n, f);
  }
  f(constant<N>);
}

#ifdef USE_AVX512

struct Vec16f { __m512 v; };
struct Vec16i { __m512i v; };
struct WeightPairs { __m512i v; };
struct CodeTable { __m512i words; };

inline const char* name() {
#ifdef __AVX512VNNI__
  return "avx512-vnni";
#else
  return "avx512";
#endif
}
inline Vec16f set1(float x) { return {_mm512_set1_ps(x)}; }
inline Vec16f load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec16f load(const uint16_t* bf16) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)bf16)), 16))};
}
inline Vec16f load(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline Vec16f load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline void store(float* p, Vec16f x) { _mm512_storeu_ps(p, x.v); }
inline void store_half(uint16_t* p, Vec16f x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x.v, 0)); }
inline Vec16f add(Vec16f a, Vec16f b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec16f sub(Vec16f a, Vec16f b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec16f mul(Vec16f a, Vec16f b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec16f div(Vec16f a, Vec16f b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec16f fma(Vec16f a, Vec16f b, Vec16f c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Returns b where either is NaN.
inline Vec16f max(Vec16f a, Vec16f b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec16f min(Vec16f a, Vec16f b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec16f abs(Vec16f a) { return {_mm512_abs_ps(a.v)}; }
inline Vec16f round(Vec16f a) { return {_mm512_roundscale_ps(a.v, 0)}; }
inline Vec16f exp2i(Vec16f n) {  // n: integers from -126 to 127
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}
inline float reduce_add(Vec16f a) { return _mm512_reduce_add_ps(a.v); }
inline float reduce_max(Vec16f a) { return _mm512_reduce_max_ps(a.v); }
inline void store_int16(int16_t* p, Vec16f x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x.v)));
}

inline Vec16i zero_int() { return {_mm512_setzero_si512()}; }
inline Vec16i add(Vec16i a, Vec16i b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Vec16f to_float(Vec16i a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Vec16i dot(Vec16i sum, WeightPairs w, int32_t two) {
#ifdef __AVX512VNNI__
  return {_mm512_dpwssd_epi32(sum.v, w.v, _mm512_set1_epi32(two))};
#else
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(w.v, _mm512_set1_epi32(two)))};
#endif
}
inline WeightPairs load_pair(const int16_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_pair(int16_t* p, WeightPairs w) { _mm512_storeu_si512(p, w.v); }
inline WeightPairs widen(const int8_t* p) { return {_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p))}; }

inline CodeTable code_table(const int16_t* values) {
  const __m256i half = _mm256_loadu_si256((const __m256i*)values);
  return {_mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1)};  // bit 4 of an index, another weight's, is ignored
}
// Decodes the weights of 16 rows and 8 inputs from 64 bytes: calls f(pairs, number of the four).
template <class F>
[[gnu::always_inline]] inline void lookup(const uint8_t* codes, const CodeTable& t, F&& f) {
  const __m512i v = _mm512_loadu_si512(codes);
  f(WeightPairs{_mm512_permutexvar_epi16(v, t.words)}, constant<0>);
  f(WeightPairs{_mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4), t.words)}, constant<1>);
  f(WeightPairs{_mm512_permutexvar_epi16(_mm512_srli_epi16(v, 8), t.words)}, constant<2>);
  f(WeightPairs{_mm512_permutexvar_epi16(_mm512_srli_epi16(v, 12), t.words)}, constant<3>);
}
// Moves eight codes of one row, as bitsandbytes packs them (4 bytes, the earlier code in the higher half), to their position.
inline void place_codes(uint8_t* codes, int row, uint32_t eight) {
  const uint32_t even = eight & 0x00FF00FFu, odd = (eight >> 8) & 0x00FF00FFu;
  const uint32_t first = ((even >> 4) & 0x000F000Fu) | (odd & 0x00F000F0u);
  const uint32_t second = (even & 0x000F000Fu) | ((odd & 0x000F000Fu) << 4);
  const uint16_t words[2] = {uint16_t((first & 0xFF) | (first >> 8)), uint16_t((second & 0xFF) | (second >> 8))};
  std::memcpy(codes + 4 * row, words, 4);
}
// Position of a row's bf16 or float among the sixteen of one input.
inline int dense_column(int row, bool) { return row; }

#else

struct Vec16f { __m256 a, b; };
struct Vec16i { __m256i a, b; };
struct WeightPairs { __m256i a, b; };
struct CodeTable { __m256i low, high; };

inline const char* name() { return "avx2"; }
inline Vec16f set1(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
inline Vec16f load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Vec16f load(const uint16_t* bf16) {  // rows 0-7 in the even words, 8-15 in the odd ones
  const __m256i v = _mm256_loadu_si256((const __m256i*)bf16);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(v, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xFFFF0000u)))};
}
inline Vec16f load(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
inline Vec16f load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline void store(float* p, Vec16f x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
inline void store_half(uint16_t* p, Vec16f x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, 0));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, 0));
}
inline Vec16f add(Vec16f x, Vec16f y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Vec16f sub(Vec16f x, Vec16f y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Vec16f mul(Vec16f x, Vec16f y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Vec16f div(Vec16f x, Vec16f y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Vec16f fma(Vec16f x, Vec16f y, Vec16f z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
// Returns y where either is NaN.
inline Vec16f max(Vec16f x, Vec16f y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Vec16f min(Vec16f x, Vec16f y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Vec16f abs(Vec16f x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
inline Vec16f round(Vec16f x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline __m256 exp2i(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Vec16f exp2i(Vec16f n) { return {exp2i(n.a), exp2i(n.b)}; }  // n: integers from -126 to 127
inline float reduce_add(Vec16f x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(Vec16f x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline void store_int16(int16_t* p, Vec16f x) {
  const __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(mixed, 0xD8));
}

inline Vec16i zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Vec16i add(Vec16i x, Vec16i y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Vec16f to_float(Vec16i x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Vec16i dot(Vec16i sum, WeightPairs w, int32_t two) {
  const __m256i x = _mm256_set1_epi32(two);
  return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(w.a, x)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(w.b, x))};
}
inline WeightPairs load_pair(const int16_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 16))};
}
inline void store_pair(int16_t* p, WeightPairs w) {
  _mm256_storeu_si256((__m256i*)p, w.a);
  _mm256_storeu_si256((__m256i*)(p + 16), w.b);
}
inline WeightPairs widen(const int8_t* p) {
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p + 16)))};
}

inline CodeTable code_table(const int16_t* values) {
  alignas(32) uint8_t low[32], high[32];
  for (int i = 0; i < 32; i++) {
    low[i] = uint8_t(uint16_t(values[i % 16]) & 0xFF);
    high[i] = uint8_t(uint16_t(values[i % 16]) >> 8);
  }
  return {_mm256_load_si256((const __m256i*)low), _mm256_load_si256((const __m256i*)high)};
}
inline WeightPairs lookup(__m256i index, const CodeTable& t) {
  const __m256i low = _mm256_shuffle_epi8(t.low, index), high = _mm256_shuffle_epi8(t.high, index);
  return {_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)};
}
// Decodes the weights of 16 rows and 8 inputs from 64 bytes: calls f(pairs, number of the four).
template <class F>
[[gnu::always_inline]] inline void lookup(const uint8_t* codes, const CodeTable& t, F&& f) {
  const __m256i mask = _mm256_set1_epi8(0x0F);
  unroll<2>([&](auto half) __attribute__((always_inline)) {
    const __m256i v = _mm256_loadu_si256((const __m256i*)(codes + 32 * half));
    f(lookup(_mm256_and_si256(v, mask), t), constant<2 * half>);
    f(lookup(_mm256_and_si256(_mm256_srli_epi16(v, 4), mask), t), constant<2 * half + 1>);
  });
}
// Moves eight codes of one row, as bitsandbytes packs them (4 bytes, the earlier code in the higher half), to their position.
inline void place_codes(uint8_t* codes, int row, uint32_t eight) {
  const uint32_t even = eight & 0x00FF00FFu, odd = (eight >> 8) & 0x00FF00FFu;
  const uint32_t first = ((even >> 4) & 0x000F000Fu) | (odd & 0x00F000F0u);
  const uint32_t second = (even & 0x000F000Fu) | ((odd & 0x000F000Fu) << 4);
  const uint32_t both = first | (second << 8);
  const uint16_t words[2] = {uint16_t(both), uint16_t(both >> 16)};
  const int at = (row % 8) / 4 * 16 + row / 8 * 8 + row % 4 * 2;
  std::memcpy(codes + at, words, 2);
  std::memcpy(codes + 32 + at, words + 1, 2);
}
// Position of a row's bf16 or float among the sixteen of one input.
inline int dense_column(int row, bool bf16) { return bf16 ? row % 8 * 2 + row / 8 : row; }

#endif

inline Vec16f zero() { return set1(0.0f); }

// e^x to 2 units in the last place (range reduction by ln 2, polynomial of degree 6); NaN stays NaN.
inline Vec16f exp(Vec16f x) {
  x = min(set1(88.0f), max(set1(-87.0f), x));
  const Vec16f n = round(mul(x, set1(1.44269504088896341f)));
  Vec16f r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  Vec16f p = set1(1.0f / 720);
  for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, set1(c));
  return mul(p, exp2i(n));
}

}  // namespace simd

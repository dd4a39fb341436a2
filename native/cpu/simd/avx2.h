// Integer operations of AVX2, 32 bytes at a time.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr std::int64_t vector_bytes = 32;
constexpr int stream_rows = 2;  // with 4 columns: 8 accumulators of 16 registers
constexpr int panel_rows = 6;   // with tile_vectors: 12
constexpr int tile_vectors = 2;
// Of k: rows meet whole columns of a panel, which come from the L2 cache fast enough.
constexpr std::int64_t panel_block = 8192;

using Bytes = __m256i;  // 32 x 8 bits
using Words = __m256i;  // 16 x int16, each of two products
using Ints = __m256i;   // 8 x int32

inline Ints zero_ints() { return _mm256_setzero_si256(); }
inline Ints broadcast_int(std::int32_t x) { return _mm256_set1_epi32(x); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints load_ints(const std::int32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline void store_ints(std::int32_t* p, Ints x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
}
inline __m256 to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }

inline Bytes load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline void store_bytes(void* p, Bytes x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
// The first `count` < 32 bytes, then zeros; reads nothing past them.
inline Bytes load_some_bytes(const void* p, std::int64_t count) {
  alignas(32) unsigned char bytes[vector_bytes] = {};
  for (std::int64_t i = 0; i < count; ++i) bytes[i] = static_cast<const unsigned char*>(p)[i];
  return load_bytes(bytes);
}
// The same four bytes in every lane of 32 bits.
inline Bytes broadcast_quad(const void* p) {
  std::int32_t quad;
  std::memcpy(&quad, p, sizeof quad);
  return _mm256_set1_epi32(quad);
}

// Signed nibbles of each byte, plus 8; both of a byte share the first step.
inline Bytes both_offset(Bytes x) { return _mm256_xor_si256(x, _mm256_set1_epi8(-0x78)); }
inline Bytes low_nibbles(Bytes x) {
  return _mm256_and_si256(both_offset(x), _mm256_set1_epi8(0x0F));
}
inline Bytes high_nibbles(Bytes x) {
  return _mm256_and_si256(_mm256_srli_epi16(both_offset(x), 4), _mm256_set1_epi8(0x0F));
}
// The bytes of a and b in turns, of the first and of the last 8 bytes of
// every 16.
inline Bytes interleave_first(Bytes a, Bytes b) { return _mm256_unpacklo_epi8(a, b); }
inline Bytes interleave_last(Bytes a, Bytes b) { return _mm256_unpackhi_epi8(a, b); }
inline __m256 as_floats(Bytes x) { return _mm256_castsi256_ps(x); }
inline Bytes as_bytes(__m256 x) { return _mm256_castps_si256(x); }
inline Ints as_ints(Bytes x) { return x; }
// The signed nibble number `Place`, of eight, of each lane.
template <int Place>
inline __m256 nibble_floats(Ints x) {
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(x, 28 - 4 * Place), 28));
}

// Sums of products: unsigned bytes, at most 15, times signed ones.
constexpr bool words_are_ints = false;
inline Words zero_words() { return _mm256_setzero_si256(); }
inline Words add_words(Words a, Words b) { return _mm256_add_epi16(a, b); }
inline Words add_products(Words sum, Bytes unsigned_bytes, Bytes signed_bytes) {
  // both instructions by hand: GCC would compute many products first, and keep sums on the stack
  // for want of registers
  Words products;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
          : "+x"(sum), "=&x"(products)
          : "x"(unsigned_bytes), "x"(signed_bytes));
  return sum;
}
// The same with two vectors of columns. The second product takes the place of the signed bytes, so
// that both are computed before they are added: Zen 3 does a twentieth more of them so.
inline void add_products(Words (&sums)[2], const Bytes (&unsigned_bytes)[2], Bytes signed_bytes) {
  Words products;
  __asm__(
      "vpmaddubsw %3, %4, %2\n\tvpmaddubsw %3, %5, %3\n\t"
      "vpaddw %2, %0, %0\n\tvpaddw %3, %1, %1"
      : "+x"(sums[0]), "+x"(sums[1]), "=&x"(products), "+x"(signed_bytes)
      : "x"(unsigned_bytes[0]), "x"(unsigned_bytes[1]));
}
inline Ints add_widened(Ints sum, Words words) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}

// totals[i] = sum of the lanes of x[i].
inline void reduce4(const Ints (&x)[4], std::int32_t* totals) {
  const __m256i x01 = _mm256_hadd_epi32(x[0], x[1]);
  const __m256i x23 = _mm256_hadd_epi32(x[2], x[3]);
  const __m256i half = _mm256_hadd_epi32(x01, x23);
  const __m128i all =
      _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(totals), all);
}

// Lane i of the result is x[i / width], with width a power of two; x[0 ..
// count) are read.
inline __m256 spread(const float* x, int count, int width_log2) {
  alignas(32) float values[8] = {};
  for (int i = 0; i < count; ++i) values[i] = x[i];
  const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  const __m256i index = _mm256_srl_epi32(lane, _mm_cvtsi32_si128(width_log2));
  return _mm256_permutevar8x32_ps(_mm256_load_ps(values), index);
}

inline __m256 lesser(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
// The first `count` <= lanes, each to the nearest integer, ties to even; all within int8.
inline void store_rounded(std::int8_t* p, __m256 x, int count) {
  const __m256i ints = _mm256_cvtps_epi32(x);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256(ints, 1));
  const __m128i codes = _mm_packs_epi16(words, words);
  if (count == 8) return _mm_storel_epi64(reinterpret_cast<__m128i*>(p), codes);
  alignas(16) std::int8_t bytes[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(bytes), codes);
  std::memcpy(p, bytes, static_cast<std::size_t>(count));
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

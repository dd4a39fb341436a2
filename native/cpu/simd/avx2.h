// Vector operations of AVX2, 32 bytes at a time.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr std::int64_t vector_bytes = 32;
constexpr int row_block = 2;  // 8 accumulators of 16 registers

using Bytes = __m256i;  // 32 x 8 bits
using Words = __m256i;  // 16 x int16
using Ints = __m256i;   // 8 x int32

inline Words zero_words() { return _mm256_setzero_si256(); }
inline Ints zero_ints() { return _mm256_setzero_si256(); }

inline Bytes load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store(void* p, Bytes x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

// The first `count` < 32 bytes, then zeros; reads nothing past them.
inline Bytes load_partial(const void* p, std::int64_t count) {
  alignas(32) unsigned char bytes[vector_bytes] = {};
  for (std::int64_t i = 0; i < count; ++i) bytes[i] = static_cast<const unsigned char*>(p)[i];
  return load(bytes);
}

// Signed nibbles of each byte, plus 8.
inline Bytes low_nibbles(Bytes x) {
  return _mm256_xor_si256(_mm256_and_si256(x, _mm256_set1_epi8(0x0F)), _mm256_set1_epi8(0x08));
}
inline Bytes high_nibbles(Bytes x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }

// sum + (products of adjacent bytes, added in pairs): unsigned times signed, in 16 bits.
inline Words add_products(Words sum, Bytes unsigned_bytes, Bytes signed_bytes) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(unsigned_bytes, signed_bytes));
}

// sum + (adjacent words, added in pairs), in 32 bits.
inline Ints add_widened(Ints sum, Words words) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}

// totals[i] = sum of the lanes of x[i], minus offset.
inline void reduce4(const Ints (&x)[4], std::int32_t offset, std::int32_t* totals) {
  const __m256i x01 = _mm256_hadd_epi32(x[0], x[1]);
  const __m256i x23 = _mm256_hadd_epi32(x[2], x[3]);
  const __m256i half = _mm256_hadd_epi32(x01, x23);
  const __m128i all =
      _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(totals), _mm_sub_epi32(all, _mm_set1_epi32(offset)));
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

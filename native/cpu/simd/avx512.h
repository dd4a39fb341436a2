// Vector operations of AVX-512 (F, BW, DQ, VL), 64 bytes at a time.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr std::int64_t vector_bytes = 64;
constexpr int row_block = 4;  // 16 accumulators of 32 registers

using Bytes = __m512i;  // 64 x 8 bits
using Words = __m512i;  // 32 x int16
using Ints = __m512i;   // 16 x int32

inline Words zero_words() { return _mm512_setzero_si512(); }
inline Ints zero_ints() { return _mm512_setzero_si512(); }

inline Bytes load(const void* p) { return _mm512_loadu_si512(p); }
inline void store(void* p, Bytes x) { _mm512_storeu_si512(p, x); }

// The first `count` < 64 bytes, then zeros; reads nothing past them.
inline Bytes load_partial(const void* p, std::int64_t count) {
  return _mm512_maskz_loadu_epi8((__mmask64{1} << count) - 1, p);
}

// Signed nibbles of each byte, plus 8. (x & 15) ^ 8 is one ternary operation.
inline Bytes low_nibbles(Bytes x) {
  return _mm512_ternarylogic_epi32(x, _mm512_set1_epi8(0x0F), _mm512_set1_epi8(0x08), 0x6A);
}
inline Bytes high_nibbles(Bytes x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }

// sum + (products of adjacent bytes, added in pairs): unsigned times signed, in 16 bits.
inline Words add_products(Words sum, Bytes unsigned_bytes, Bytes signed_bytes) {
  return _mm512_add_epi16(sum, _mm512_maddubs_epi16(unsigned_bytes, signed_bytes));
}

// sum + (adjacent words, added in pairs), in 32 bits.
inline Ints add_widened(Ints sum, Words words) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(words, _mm512_set1_epi16(1)));
}

// totals[i] = sum of the lanes of x[i], minus offset.
inline void reduce4(const Ints (&x)[4], std::int32_t offset, std::int32_t* totals) {
  const __m512i x01 =
      _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  const __m512i x23 =
      _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
  const __m512i wide =
      _mm512_add_epi32(_mm512_unpacklo_epi64(x01, x23), _mm512_unpackhi_epi64(x01, x23));
  const __m256i half =
      _mm256_add_epi32(_mm512_castsi512_si256(wide), _mm512_extracti64x4_epi64(wide, 1));
  const __m128i all =
      _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(totals), _mm_sub_epi32(all, _mm_set1_epi32(offset)));
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

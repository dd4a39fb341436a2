// Integer operations of AVX-512 (F, BW, DQ, VL), 64 bytes at a time; with VNNI
// where it is.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr std::int64_t vector_bytes = 64;
constexpr int stream_rows = 4;  // with 4 columns: 16 accumulators of 32 registers
constexpr int panel_rows = 6;   // with tile_vectors: 24
constexpr int tile_vectors = 4;

using Bytes = __m512i;  // 64 x 8 bits
using Ints = __m512i;   // 16 x int32

inline Ints zero_ints() { return _mm512_setzero_si512(); }
inline Ints broadcast_int(std::int32_t x) { return _mm512_set1_epi32(x); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints load_ints(const std::int32_t* p) { return _mm512_loadu_si512(p); }
inline void store_ints(std::int32_t* p, Ints x) { _mm512_storeu_si512(p, x); }
inline __m512 to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }

inline Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline void store_bytes(void* p, Bytes x) { _mm512_storeu_si512(p, x); }
// The first `count` < 64 bytes, then zeros; reads nothing past them.
inline Bytes load_some_bytes(const void* p, std::int64_t count) {
  return _mm512_maskz_loadu_epi8((__mmask64{1} << count) - 1, p);
}
// The same four bytes in every lane of 32 bits.
inline Bytes broadcast_quad(const void* p) {
  std::int32_t quad;
  std::memcpy(&quad, p, sizeof quad);
  return _mm512_set1_epi32(quad);
}

// Signed nibbles of each byte, plus 8. (x & 15) ^ 8 is one ternary operation.
inline Bytes low_nibbles(Bytes x) {
  return _mm512_ternarylogic_epi32(x, _mm512_set1_epi8(0x0F), _mm512_set1_epi8(0x08), 0x6A);
}
inline Bytes high_nibbles(Bytes x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
// The bytes of a and b in turns, of the first and of the last 8 bytes of
// every 16.
inline Bytes interleave_first(Bytes a, Bytes b) { return _mm512_unpacklo_epi8(a, b); }
inline Bytes interleave_last(Bytes a, Bytes b) { return _mm512_unpackhi_epi8(a, b); }
inline __m512 as_floats(Bytes x) { return _mm512_castsi512_ps(x); }
inline Bytes as_bytes(__m512 x) { return _mm512_castps_si512(x); }
inline Ints as_ints(Bytes x) { return x; }
// The signed nibble number `Place`, of eight, of each lane.
template <int Place>
inline __m512 nibble_floats(Ints x) {
  const __m512 table = _mm512_set_ps(-1, -2, -3, -4, -5, -6, -7, -8, 7, 6, 5, 4, 3, 2, 1, 0);
  // of an index, the low four bits count
  return _mm512_permutexvar_ps(_mm512_srli_epi32(x, 4 * Place), table);
}

// Sums of products: unsigned bytes, at most 15, times signed ones.
#if defined(__AVX512VNNI__)
using Words = __m512i;  // 16 x int32: nothing to widen
constexpr bool words_are_ints = true;
constexpr std::int64_t panel_block = 8192;  // of k: 512 KiB
inline Words add_products(Words sum, Bytes unsigned_bytes, Bytes signed_bytes) {
  sum = _mm512_dpbusd_epi32(sum, unsigned_bytes, signed_bytes);
  // no instruction: it keeps GCC from holding each sum twice, once for every
  // type that it is seen as
  __asm__("" : "+v"(sum));
  return sum;
}
inline Words add_words(Words a, Words b) { return _mm512_add_epi32(a, b); }
inline Ints add_widened(Ints sum, Words words) { return _mm512_add_epi32(sum, words); }
#else
using Words = __m512i;  // 32 x int16, each of two products
constexpr bool words_are_ints = false;
constexpr std::int64_t panel_block = 512;  // of k: 32 KiB
inline Words add_products(Words sum, Bytes unsigned_bytes, Bytes signed_bytes) {
  return _mm512_add_epi16(sum, _mm512_maddubs_epi16(unsigned_bytes, signed_bytes));
}
inline Words add_words(Words a, Words b) { return _mm512_add_epi16(a, b); }
inline Ints add_widened(Ints sum, Words words) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(words, _mm512_set1_epi16(1)));
}
#endif
inline Words zero_words() { return _mm512_setzero_si512(); }

// totals[i] = sum of the lanes of x[i].
inline void reduce4(const Ints (&x)[4], std::int32_t* totals) {
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
  _mm_storeu_si128(reinterpret_cast<__m128i*>(totals), all);
}

// Lane i of the result is x[i / width], with width a power of two; x[0 ..
// count) are read.
inline __m512 spread(const float* x, int count, int width_log2) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512 values = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), x);
  return _mm512_permutexvar_ps(_mm512_srl_epi32(lane, _mm_cvtsi32_si128(width_log2)), values);
}

inline __m512 lesser(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
// The first `count` <= lanes, each to the nearest integer, ties to even; all within int8.
inline void store_rounded(std::int8_t* p, __m512 x, int count) {
  _mm512_mask_cvtepi32_storeu_epi8(p, static_cast<__mmask16>((1u << count) - 1),
                                   _mm512_cvtps_epi32(x));
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

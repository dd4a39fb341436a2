// AVX-512 with BF16 and VNNI: what it adds to the operations of AVX-512.
#pragma once

#include "avx512_floats.h"

#define TESSERAL_BF16_DOT
#define TESSERAL_INT8_DOT

namespace tesseral::TESSERAL_TARGET {
namespace {

// sum + products of the low halves + products of the high halves, each half a bfloat16.
inline Floats add_pair_products(Floats sum, Floats a, Floats b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_castps_si512(a)),
                          reinterpret_cast<__m512bh>(_mm512_castps_si512(b)));
}

// 2 * lanes bfloat16 numbers, or the first `count` of them and then zeros.
inline Floats load_pairs(const std::uint16_t* p) { return _mm512_loadu_ps(p); }
inline Floats load_pairs_part(const std::uint16_t* p, int count) {
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((__mmask32{1} << count) - 1, p));
}

// Makes of two rows of 2 * lanes numbers their pairs, in the order that costs least: every four
// neighbours of eight in `a`, the next four in `b`.
inline void pair_rows(Floats& a, Floats& b) {
  const __m512i x = _mm512_castps_si512(a);
  const __m512i y = _mm512_castps_si512(b);
  a = _mm512_castsi512_ps(_mm512_unpacklo_epi16(x, y));
  b = _mm512_castsi512_ps(_mm512_unpackhi_epi16(x, y));
}
// Brings 2 * lanes numbers into that order, and back.
inline void order_as_pairs(Floats& a, Floats& b) {
  const __m512i low = _mm512_set_epi32(27, 26, 25, 24, 19, 18, 17, 16, 11, 10, 9, 8, 3, 2, 1, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
  const Floats first = _mm512_permutex2var_ps(a, low, b);
  b = _mm512_permutex2var_ps(a, high, b);
  a = first;
}
inline void order_by_column(Floats& a, Floats& b) {
  const __m512i first_half =
      _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i second_half = _mm512_add_epi32(first_half, _mm512_set1_epi32(8));
  const Floats first = _mm512_permutex2var_ps(a, first_half, b);
  b = _mm512_permutex2var_ps(a, second_half, b);
  a = first;
}

// The lanes of `low`, then those of `high`, as bfloat16.
inline Floats narrow_to_pairs(Floats low, Floats high) {
  return _mm512_castsi512_ps(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

// The lanes of `first` and `second` in turns, as bfloat16: a pair in each lane.
inline Floats pair_lanes(Floats first, Floats second) {
  const __m512i turns = _mm512_set_epi32(0x1F000F, 0x1E000E, 0x1D000D, 0x1C000C, 0x1B000B, 0x1A000A,
                                         0x190009, 0x180008, 0x170007, 0x160006, 0x150005, 0x140004,
                                         0x130003, 0x120002, 0x110001, 0x100000);
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(turns, both));
}
// The same pair of bfloat16 numbers in every lane.
inline Floats broadcast_pair(const void* p) {
  float pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return _mm512_set1_ps(pair);
}

// Pairs (first[i], second[i]) of `lanes` bfloat16 numbers.
inline Floats interleave_bf16(const std::uint16_t* first, const std::uint16_t* second) {
  const __m512i low =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)));
  const __m512i high =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)));
  return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

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

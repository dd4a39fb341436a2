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

// Products of pairs of 16-bit integers (AVX2), 8 sums of 32 bits at a time.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace tesseral::TESSERAL_TARGET {
namespace {

// A pair in each lane: the even element low, the odd one high.
using Pairs = __m256i;

inline Pairs load_pairs(const float* p) { return _mm256_castps_si256(_mm256_loadu_ps(p)); }
inline void store_pairs(float* p, Pairs x) { _mm256_storeu_ps(p, _mm256_castsi256_ps(x)); }
inline Pairs repeat_pair(const float* p) { return _mm256_castps_si256(_mm256_broadcast_ss(p)); }

// 16 floats in order, each to the nearest integer of 16 bits.
inline Pairs words_of(__m256 first, __m256 last) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(last));
  return _mm256_permute4x64_epi64(words, 0xD8);
}
// Two rows of integers of 16 bits side by side.
inline Pairs pair_ints(__m256i even, __m256i odd) {
  return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xAA);
}
// x / 2^Bits, to the nearest integer.
template <int Bits>
inline __m256i shift_rounded(__m256i x) {
  return _mm256_srai_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(1 << (Bits - 1))), Bits);
}
inline __m256i rounded_ints(__m256 x) { return _mm256_cvtps_epi32(x); }

inline __m256i add_pair_products(__m256i sum, Pairs a, Pairs b) {
  // both instructions by hand: GCC would compute many products first, and keep sums on the stack
  // for want of registers
  Pairs products;
  __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(a), "x"(b));
  return sum;
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

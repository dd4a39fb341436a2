// Products of codes and integers as words of 16 bits (AVX2), 16 at a time.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "unroll.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

using Codes = __m256i;  // 32 bytes, or 16 words
using Sums = __m256i;   // 8 x int32

constexpr std::int64_t code_bytes = 32;
constexpr std::int64_t code_words = 16;

inline Sums no_sums() { return _mm256_setzero_si256(); }

inline Codes load_codes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
// The first `count` < 32 bytes, then zeros; reads nothing past them.
inline Codes load_some_codes(const void* p, std::int64_t count) {
  alignas(32) unsigned char bytes[code_bytes] = {};
  std::memcpy(bytes, p, static_cast<std::size_t>(count));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
}
inline Codes flip_codes(Codes x, int bits) {
  return _mm256_xor_si256(x, _mm256_set1_epi8(static_cast<char>(bits)));
}

// The code number `Place` of each word.
template <int Bits, int Place>
inline Codes codes_in_words(Codes x) {
  constexpr int shift = Bits * Place;
  const Codes moved = shift == 0 ? x : _mm256_srli_epi16(x, shift);
  constexpr int mask = (1 << Bits) - 1;
  return shift + Bits == 16 ? moved : _mm256_and_si256(moved, _mm256_set1_epi16(mask));
}
// The code in the low bits of each word of one byte.
template <int Bits>
inline Codes low_codes(Codes x) {
  return codes_in_words<Bits, 0>(x);
}

// Bytes of two rows side by side: the first or the last 8 of every 16.
template <bool Last>
inline Codes interleave_rows(Codes a, Codes b) {
  return Last ? _mm256_unpackhi_epi8(a, b) : _mm256_unpacklo_epi8(a, b);
}
inline Codes first_words(Codes x) { return _mm256_unpacklo_epi8(x, _mm256_setzero_si256()); }
inline Codes last_words(Codes x) { return _mm256_unpackhi_epi8(x, _mm256_setzero_si256()); }

inline Codes load_words(const std::int16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
// Two words, repeated.
inline Codes repeat_two(const std::int16_t* p) {
  std::int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return _mm256_set1_epi32(pair);
}

// sum + products of codes and signed words, added in pairs.
inline Sums add_products(Sums sum, Codes codes, Codes words) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes, words));
  // no instruction: it keeps GCC from adding products in another order, with more registers than
  // there are
  __asm__("" : "+x"(sum));
  return sum;
}
inline Sums subtract_sums(Sums a, Sums b) { return _mm256_sub_epi32(a, b); }
template <int Bits>
inline Sums shift_down(Sums x) {
  return _mm256_srai_epi32(x, Bits);
}
inline Floats floats_of(Sums x) { return _mm256_cvtepi32_ps(x); }

// Lane i of the result is the sum of the lanes of x[i].
inline Sums sum_each(const Sums (&x)[lanes]) {
  Sums quads[2];
  TESSERAL_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Sums* q = x + 4 * i;
    // two shuffles and a sum: what _mm256_hadd_epi32 takes, and in less time
    const Sums low =
        _mm256_add_epi32(_mm256_unpacklo_epi32(q[0], q[1]), _mm256_unpackhi_epi32(q[0], q[1]));
    const Sums high =
        _mm256_add_epi32(_mm256_unpacklo_epi32(q[2], q[3]), _mm256_unpackhi_epi32(q[2], q[3]));
    quads[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
  }
  return _mm256_add_epi32(_mm256_permute2x128_si256(quads[0], quads[1], 0x20),
                          _mm256_permute2x128_si256(quads[0], quads[1], 0x31));
}

// Rounds lanes to integers and stores their `Digits` words to base 2^15, the lowest first, `stride`
// words apart; returns the integers. One word takes 16 bits, two take 31.
template <int Digits>
inline Floats store_words(Floats x, std::int16_t* p, std::int64_t stride) {
  const __m256i integers = _mm256_cvtps_epi32(x);
  __m256i rest = integers;
  for (int i = 0; i < Digits; ++i) {
    // of a low digit, the lowest 15 bits with their sign
    const __m256i digit =
        i + 1 == Digits ? rest : _mm256_srai_epi32(_mm256_slli_epi32(rest, 17), 17);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(digit), _mm256_extracti128_si256(digit, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i * stride), words);
    rest = _mm256_srai_epi32(_mm256_sub_epi32(rest, digit), 15);
  }
  return floats_of(integers);
}

// The low halves of both, and the high halves.
inline void join_lanes(Floats& a, Floats& b) {
  const Floats low = _mm256_permute2f128_ps(a, b, 0x20);
  b = _mm256_permute2f128_ps(a, b, 0x31);
  a = low;
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

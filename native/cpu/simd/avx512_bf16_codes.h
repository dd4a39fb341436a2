// Products of unsigned codes and signed digits (AVX-512 VNNI), 64 bytes at a time.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "unroll.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

using Codes = __m512i;  // 64 bytes
using Sums = __m512i;   // 16 x int32

constexpr std::int64_t code_bytes = 64;

inline Sums no_sums() { return _mm512_setzero_si512(); }

// The first `count` <= 64 bytes, then zeros; reads nothing past them.
inline Codes load_codes(const void* p, std::int64_t count) {
  if (count >= code_bytes) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi8((__mmask64{1} << count) - 1, p);
}
inline Codes load_codes(const void* p) { return _mm512_loadu_si512(p); }
inline void store_codes(void* p, Codes x) { _mm512_storeu_si512(p, x); }
inline Codes flip_codes(Codes x, int bits) {
  return _mm512_xor_si512(x, _mm512_set1_epi8(static_cast<char>(bits)));
}
inline Codes low_codes(Codes x) { return _mm512_and_si512(x, _mm512_set1_epi8(0x0F)); }
inline Codes high_codes(Codes x) { return low_codes(_mm512_srli_epi16(x, 4)); }

// Four bytes, repeated.
inline Codes repeat_four(const std::int8_t* p) {
  std::int32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return _mm512_set1_epi32(word);
}

// sum + products of unsigned codes and signed digits, added in fours.
inline Sums add_products(Sums sum, Codes codes, Codes digits) {
  return _mm512_dpbusd_epi32(sum, codes, digits);
}

inline Floats floats_of(Sums x) { return _mm512_cvtepi32_ps(x); }
inline Sums times_256(Sums x) { return _mm512_slli_epi32(x, 8); }

// Lane i of the result is the sum of the lanes of x[i].
inline Sums sum_each(const Sums (&x)[lanes]) {
  const auto add_pairs = [](Sums low, Sums high) { return _mm512_add_epi32(low, high); };
  Sums quads[4];
  TESSERAL_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Sums* q = x + 4 * i;
    const Sums low =
        add_pairs(_mm512_unpacklo_epi32(q[0], q[1]), _mm512_unpackhi_epi32(q[0], q[1]));
    const Sums high =
        add_pairs(_mm512_unpacklo_epi32(q[2], q[3]), _mm512_unpackhi_epi32(q[2], q[3]));
    quads[i] = add_pairs(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
  }
  const auto add_blocks = [&](Sums a, Sums b) {
    return add_pairs(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
  };
  return add_blocks(add_blocks(quads[0], quads[1]), add_blocks(quads[2], quads[3]));
}

// Rounds lanes to integers of at most 24 bits and stores their digits to base 256, each in
// [-128, 127], the lowest first, `stride` bytes apart; returns the integers.
template <int Digits>
inline Floats store_digits(Floats x, std::int8_t* p, std::int64_t stride) {
  const __m512i integers = _mm512_cvtps_epi32(x);
  __m512i rest = integers;
  for (int i = 0; i < Digits; ++i) {
    const __m512i up = _mm512_add_epi32(rest, _mm512_set1_epi32(128));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i * stride), _mm512_cvtepi32_epi8(rest));
    rest = _mm512_srai_epi32(up, 8);
  }
  return floats_of(integers);
}

// Bytes of four rows side by side: columns[j] holds, in 128-bit lane l, the columns 16 l + 4 j to
// 16 l + 4 j + 3, four bytes each.
inline void interleave_rows(const Codes (&rows)[4], Codes (&columns)[4]) {
  const Codes low01 = _mm512_unpacklo_epi8(rows[0], rows[1]);
  const Codes high01 = _mm512_unpackhi_epi8(rows[0], rows[1]);
  const Codes low23 = _mm512_unpacklo_epi8(rows[2], rows[3]);
  const Codes high23 = _mm512_unpackhi_epi8(rows[2], rows[3]);
  columns[0] = _mm512_unpacklo_epi16(low01, low23);
  columns[1] = _mm512_unpackhi_epi16(low01, low23);
  columns[2] = _mm512_unpacklo_epi16(high01, high23);
  columns[3] = _mm512_unpackhi_epi16(high01, high23);
}

// Undoes that order: x[j] becomes columns 16 j to 16 j + 15.
inline void order_columns(Floats (&x)[4]) {
  const Floats a = _mm512_shuffle_f32x4(x[0], x[1], 0x44);
  const Floats b = _mm512_shuffle_f32x4(x[0], x[1], 0xEE);
  const Floats c = _mm512_shuffle_f32x4(x[2], x[3], 0x44);
  const Floats d = _mm512_shuffle_f32x4(x[2], x[3], 0xEE);
  x[0] = _mm512_shuffle_f32x4(a, c, 0x88);
  x[1] = _mm512_shuffle_f32x4(a, c, 0xDD);
  x[2] = _mm512_shuffle_f32x4(b, d, 0x88);
  x[3] = _mm512_shuffle_f32x4(b, d, 0xDD);
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

// Floating-point operations of AVX2, FMA and F16C, 8 lanes of float32.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "exp2.h"
#include "half.h"

#define TESSERAL_INT16_DOT

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int lanes = 8;
constexpr int gemm_rows = 6;  // with gemm_columns vectors: 12 accumulators of 16 registers
constexpr int gemm_columns = 2;

using Floats = __m256;

inline Floats zero() { return _mm256_setzero_ps(); }
inline Floats broadcast(float x) { return _mm256_set1_ps(x); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats divide(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats magnitude(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline Floats with_sign_of(Floats magnitude, Floats sign) {
  return _mm256_or_ps(magnitude, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign));
}
inline __m128 halves_of(Floats x, __m128 (*combine)(__m128, __m128)) {
  const __m128 two = combine(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 one = combine(two, _mm_movehl_ps(two, two));
  return combine(one, _mm_movehdup_ps(one));
}
inline float sum_lanes(Floats x) {
  return _mm_cvtss_f32(halves_of(x, [](__m128 a, __m128 b) { return _mm_add_ps(a, b); }));
}
inline float largest_lane(Floats x) {
  return _mm_cvtss_f32(halves_of(x, [](__m128 a, __m128 b) { return _mm_max_ps(a, b); }));
}
inline Floats count_up() { return _mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0); }

inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }

inline Floats load_bf16(const std::uint16_t* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
// The even and the odd of 2 * lanes bfloat16 numbers, two in each lane.
inline void widen_pairs(Floats pairs, Floats& even, Floats& odd) {
  const __m256i x = _mm256_castps_si256(pairs);
  even = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(-65536)));
}
// The same, read from memory: cheaper than in order.
inline void load_bf16_halves(const std::uint16_t* p, Floats& even, Floats& odd) {
  widen_pairs(load(reinterpret_cast<const float*>(p)), even, odd);
}
inline Floats load_f16(const std::uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Floats load_u8(const std::uint8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

inline void store_bf16(std::uint16_t* p, Floats x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7FFF));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}
inline void store_f16(std::uint16_t* p, Floats x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// 2^x for x <= 0, -infinity included; results below the smallest normal number become 0. NaN is the
// larger as a second operand, compares as unordered, and so passes through.
inline Floats exp2_of_negative(Floats x) {
  const Floats bounded = _mm256_max_ps(broadcast(-150.0f), x);
  const Floats floor = _mm256_floor_ps(bounded);
  const Floats fraction = subtract(bounded, floor);
  Floats sum = broadcast(exp2_coefficients[exp2_degree]);
  for (int i = exp2_degree - 1; i >= 0; --i) {
    sum = multiply_add(sum, fraction, broadcast(exp2_coefficients[i]));
  }
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(floor), 23);
  const Floats scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), exponent));
  return _mm256_and_ps(_mm256_cmp_ps(x, broadcast(-126.0f), _CMP_NLT_UQ), scaled);
}

// Lane i of the result is the sum of the lanes of x[i].
inline Floats sum_each(const Floats (&x)[lanes]) {
  Floats quads[2];
  for (int i = 0; i < 2; ++i) {
    const Floats* q = x + 4 * i;
    // two shuffles and a sum: what _mm256_hadd_ps takes, and in less time
    const Floats low = add(_mm256_unpacklo_ps(q[0], q[1]), _mm256_unpackhi_ps(q[0], q[1]));
    const Floats high = add(_mm256_unpacklo_ps(q[2], q[3]), _mm256_unpackhi_ps(q[2], q[3]));
    quads[i] = add(_mm256_shuffle_ps(low, high, 0x44), _mm256_shuffle_ps(low, high, 0xEE));
  }
  return add(_mm256_permute2f128_ps(quads[0], quads[1], 0x20),
             _mm256_permute2f128_ps(quads[0], quads[1], 0x31));
}

// Turns the even and the odd of 2 * lanes numbers into the first and the last, and back.
inline void join_halves(Floats& a, Floats& b) {
  const Floats low = _mm256_unpacklo_ps(a, b);
  const Floats high = _mm256_unpackhi_ps(a, b);
  a = _mm256_permute2f128_ps(low, high, 0x20);
  b = _mm256_permute2f128_ps(low, high, 0x31);
}
inline void split_halves(Floats& a, Floats& b) {
  const Floats low = _mm256_permute2f128_ps(a, b, 0x20);
  const Floats high = _mm256_permute2f128_ps(a, b, 0x31);
  a = _mm256_shuffle_ps(low, high, 0x88);
  b = _mm256_shuffle_ps(low, high, 0xDD);
}

// Rows become columns; lanes are moved, never computed with, so any 32-bit contents pass.
inline void transpose(Floats (&x)[lanes]) {
  Floats t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  Floats u[8];
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

#include "part_by_copy.h"

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

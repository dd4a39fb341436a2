// Floating-point operations of AVX-512 (F, BW, DQ, VL), 16 lanes of float32.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "exp2.h"
#include "half.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int lanes = 16;
constexpr int gemm_rows = 12;  // with gemm_columns vectors: 24 accumulators of 32 registers
constexpr int gemm_columns = 2;

using Floats = __m512;

inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats broadcast(float x) { return _mm512_set1_ps(x); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats magnitude(Floats a) { return _mm512_abs_ps(a); }
inline Floats with_sign_of(Floats magnitude, Floats sign) {
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_set1_epi32(INT32_MIN),
                                                       _mm512_castps_si512(sign),
                                                       _mm512_castps_si512(magnitude), 0xCA));
}
inline float sum_lanes(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest_lane(Floats x) { return _mm512_reduce_max_ps(x); }
inline Floats count_up() {
  return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}

inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }

inline Floats widen_bf16(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline Floats load_bf16(const std::uint16_t* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// The even and the odd of 2 * lanes bfloat16 numbers, two in each lane.
inline void widen_pairs(Floats pairs, Floats& even, Floats& odd) {
  const __m512i x = _mm512_castps_si512(pairs);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(-65536)));
}
// The same, read from memory: cheaper than in order.
inline void load_bf16_halves(const std::uint16_t* p, Floats& even, Floats& odd) {
  widen_pairs(_mm512_loadu_ps(p), even, odd);
}
inline Floats load_f16(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Floats load_u8(const std::uint8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

inline __m256i narrow_bf16(Floats x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
  return _mm512_cvtepi32_epi16(
      _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, is_nan, quiet), 16));
}
inline void store_bf16(std::uint16_t* p, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(x));
}
inline void store_f16(std::uint16_t* p, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// The first `count` < lanes elements, then zeros; touches nothing past them.
inline __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
inline Floats load_part(const float* p, int count) {
  return _mm512_maskz_loadu_ps(first(count), p);
}
inline Floats load_bf16_part(const std::uint16_t* p, int count) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first(count), p));
}
inline Floats load_f16_part(const std::uint16_t* p, int count) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), p));
}
inline void store_part(float* p, Floats x, int count) { _mm512_mask_storeu_ps(p, first(count), x); }
inline void store_bf16_part(std::uint16_t* p, Floats x, int count) {
  _mm256_mask_storeu_epi16(p, first(count), narrow_bf16(x));
}
inline void store_f16_part(std::uint16_t* p, Floats x, int count) {
  _mm256_mask_storeu_epi16(p, first(count),
                           _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// 2^x for x <= 0, -infinity included: x - floor(x) is one instruction, and so is scaling by
// 2^floor(x).
inline Floats exp2_of_negative(Floats x) {
  const Floats fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Floats sum = broadcast(exp2_coefficients[exp2_degree]);
  for (int i = exp2_degree - 1; i >= 0; --i) {
    sum = multiply_add(sum, fraction, broadcast(exp2_coefficients[i]));
  }
  return _mm512_scalef_ps(sum, x);
}

// Lane i of the result is the sum of the lanes of x[i].
inline Floats sum_each(const Floats (&x)[lanes]) {
  Floats quads[4];
  for (int i = 0; i < 4; ++i) {
    const Floats* q = x + 4 * i;
    const Floats low = add(_mm512_unpacklo_ps(q[0], q[1]), _mm512_unpackhi_ps(q[0], q[1]));
    const Floats high = add(_mm512_unpacklo_ps(q[2], q[3]), _mm512_unpackhi_ps(q[2], q[3]));
    const __m512d l = _mm512_castps_pd(low);
    const __m512d h = _mm512_castps_pd(high);
    quads[i] =
        add(_mm512_castpd_ps(_mm512_unpacklo_pd(l, h)), _mm512_castpd_ps(_mm512_unpackhi_pd(l, h)));
  }
  const Floats first_half = add(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88),
                                _mm512_shuffle_f32x4(quads[0], quads[1], 0xDD));
  const Floats second_half = add(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88),
                                 _mm512_shuffle_f32x4(quads[2], quads[3], 0xDD));
  return add(_mm512_shuffle_f32x4(first_half, second_half, 0x88),
             _mm512_shuffle_f32x4(first_half, second_half, 0xDD));
}

// Turns the even and the odd of 2 * lanes numbers into the first and the last, and back.
inline void join_halves(Floats& a, Floats& b) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const Floats first = _mm512_permutex2var_ps(a, low, b);
  b = _mm512_permutex2var_ps(a, high, b);
  a = first;
}
inline void split_halves(Floats& a, Floats& b) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const Floats first = _mm512_permutex2var_ps(a, even, b);
  b = _mm512_permutex2var_ps(a, odd, b);
  a = first;
}

// Rows become columns; lanes are moved, never computed with, so any 32-bit contents pass.
inline void transpose(Floats (&x)[lanes]) {
  Floats t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    const auto d = [&](int j) { return _mm512_castps_pd(t[i + j]); };
    x[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(0), d(2)));
    x[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(0), d(2)));
    x[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(1), d(3)));
    x[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(1), d(3)));
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    x[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    x[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xDD);
    x[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

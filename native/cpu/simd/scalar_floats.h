// The same floating-point operations in plain C++ on 4 lanes, which compilers turn into whatever
// vectors the machine surely has.
#pragma once

#include <cstdint>
#include <cstring>

#include "exp2.h"
#include "half.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int lanes = 4;
constexpr int gemm_rows = 6;
constexpr int gemm_columns = 2;

struct Floats {
  float lane[lanes];
};

template <class Operation>
inline Floats each(Operation operation) {
  Floats r;
  for (int i = 0; i < lanes; ++i) r.lane[i] = operation(i);
  return r;
}

inline Floats broadcast(float x) {
  return each([&](int) { return x; });
}
inline Floats zero() { return broadcast(0.0f); }
inline Floats add(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Floats subtract(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Floats multiply(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Floats divide(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline Floats larger(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Floats magnitude(Floats a) {
  return each([&](int i) { return __builtin_fabsf(a.lane[i]); });
}
inline Floats with_sign_of(Floats magnitude, Floats sign) {
  return each([&](int i) { return __builtin_copysignf(magnitude.lane[i], sign.lane[i]); });
}
inline float sum_lanes(Floats x) { return (x.lane[0] + x.lane[2]) + (x.lane[1] + x.lane[3]); }
inline float largest_lane(Floats x) {
  float largest = x.lane[0];
  for (int i = 1; i < lanes; ++i) largest = x.lane[i] > largest ? x.lane[i] : largest;
  return largest;
}
inline Floats count_up() {
  return each([](int i) { return static_cast<float>(i); });
}

// At any address: pairs of bfloat16 come through here too.
inline Floats load(const float* p) {
  Floats x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, Floats x) {
  for (int i = 0; i < lanes; ++i) p[i] = x.lane[i];
}

inline Floats load_bf16(const std::uint16_t* p) {
  return each([&](int i) { return float_of_bits(std::uint32_t{p[i]} << 16); });
}
// The even and the odd of 2 * lanes bfloat16 numbers, two in each lane.
inline void widen_pairs(Floats pairs, Floats& even, Floats& odd) {
  even = each([&](int i) { return float_of_bits(bits_of_float(pairs.lane[i]) << 16); });
  odd = each([&](int i) { return float_of_bits(bits_of_float(pairs.lane[i]) & 0xFFFF0000u); });
}
// The same, read from memory.
inline void load_bf16_halves(const std::uint16_t* p, Floats& even, Floats& odd) {
  widen_pairs(load(reinterpret_cast<const float*>(p)), even, odd);
}
inline Floats load_f16(const std::uint16_t* p) {
  return each([&](int i) { return float_of_f16(p[i]); });
}
inline Floats load_u8(const std::uint8_t* p) {
  return each([&](int i) { return static_cast<float>(p[i]); });
}
inline void store_bf16(std::uint16_t* p, Floats x) {
  for (int i = 0; i < lanes; ++i) {
    const std::uint32_t bits = bits_of_float(x.lane[i]);
    const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    const std::uint32_t rounded = is_nan ? bits | 0x00400000u : bits + 0x7FFFu + (bits >> 16 & 1u);
    p[i] = static_cast<std::uint16_t>(rounded >> 16);
  }
}
inline void store_f16(std::uint16_t* p, Floats x) {
  for (int i = 0; i < lanes; ++i) p[i] = f16_of_float(x.lane[i]);
}

// 2^x for x <= 0, -infinity included; results below the smallest normal number become 0.
inline Floats exp2_of_negative(Floats x) {
  return each([&](int i) {
    const float power = x.lane[i];
    if (!(power >= -126.0f)) return power != power ? power : 0.0f;
    const float floor = __builtin_floorf(power);
    float sum = exp2_coefficients[exp2_degree];
    for (int j = exp2_degree - 1; j >= 0; --j) {
      sum = sum * (power - floor) + exp2_coefficients[j];
    }
    return sum * float_of_bits(static_cast<std::uint32_t>(static_cast<int>(floor) + 127) << 23);
  });
}

// Lane i of the result is the sum of the lanes of x[i].
inline Floats sum_each(const Floats (&x)[lanes]) {
  return each([&](int i) { return sum_lanes(x[i]); });
}

// Turns the even and the odd of 2 * lanes numbers into the first and the last, and back.
inline void join_halves(Floats& a, Floats& b) {
  const auto of = [&](int i) { return i % 2 == 0 ? a.lane[i / 2] : b.lane[i / 2]; };
  const Floats first = each(of);
  b = each([&](int i) { return of(lanes + i); });
  a = first;
}
inline void split_halves(Floats& a, Floats& b) {
  const auto of = [&](int i) { return i < lanes ? a.lane[i] : b.lane[i - lanes]; };
  const Floats first = each([&](int i) { return of(2 * i); });
  b = each([&](int i) { return of(2 * i + 1); });
  a = first;
}

// Rows become columns.
inline void transpose(Floats (&x)[lanes]) {
  for (int i = 0; i < lanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float t = x[i].lane[j];
      x[i].lane[j] = x[j].lane[i];
      x[j].lane[i] = t;
    }
  }
}

#include "part_by_copy.h"

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

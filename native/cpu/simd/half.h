// Single numbers of 16 bits. Copied into each target, so that none runs code compiled for another.
#pragma once

#include <cstdint>
#include <cstring>

namespace tesseral::TESSERAL_TARGET {
namespace {

inline float float_of_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline std::uint32_t bits_of_float(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of_f16(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
  const std::uint32_t rest = half & 0x7FFFu;
  if (rest >= 0x7C00u) return float_of_bits(sign | 0x7F800000u | (rest & 0x3FFu) << 13);
  // as the exponent and fraction of a float, 2^112 too small; right for subnormal numbers too
  return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 0x1p112f));
}
inline std::uint16_t f16_of_float(float x) {
  const std::uint32_t bits = bits_of_float(x);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t rest = bits & 0x7FFFFFFFu;
  if (rest > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u);
  if (rest >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);
  if (rest < 0x38800000u) {  // subnormal: adding 1/2 leaves the rounded fraction in the low bits
    const std::uint32_t fraction = bits_of_float(float_of_bits(rest) + 0.5f) - 0x3F000000u;
    return static_cast<std::uint16_t>(sign | fraction);
  }
  return static_cast<std::uint16_t>(sign | (rest - 0x38000000u + 0xFFFu + (rest >> 13 & 1u)) >> 13);
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

// Numbers of the types that rows of a model may have, as vectors of float32.
#pragma once

#include <cstdint>

#include "tesseral/quantize_rows.h"
#include TESSERAL_FLOATS
#include TESSERAL_SIMD

namespace tesseral::TESSERAL_TARGET {
namespace {

using std::int64_t;
using std::int8_t;
using std::uint16_t;
using std::uint8_t;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t padded(int64_t n) { return (n + lanes - 1) / lanes * lanes; }

inline Floats load_lanes(RowElement element, const void* rows, int64_t at) {
  if (element == RowElement::f32) return load(static_cast<const float*>(rows) + at);
  const uint16_t* p = static_cast<const uint16_t*>(rows) + at;
  return element == RowElement::bf16 ? load_bf16(p) : load_f16(p);
}
inline Floats load_some(RowElement element, const void* rows, int64_t at, int count) {
  if (element == RowElement::f32) return load_part(static_cast<const float*>(rows) + at, count);
  const uint16_t* p = static_cast<const uint16_t*>(rows) + at;
  return element == RowElement::bf16 ? load_bf16_part(p, count) : load_f16_part(p, count);
}

inline void store_some(RowElement element, void* rows, int64_t at, Floats x, int count) {
  if (element == RowElement::f32) {
    float* p = static_cast<float*>(rows) + at;
    return count == lanes ? store(p, x) : store_part(p, x, count);
  }
  uint16_t* p = static_cast<uint16_t*>(rows) + at;
  if (element == RowElement::bf16) {
    return count == lanes ? store_bf16(p, x) : store_bf16_part(p, x, count);
  }
  count == lanes ? store_f16(p, x) : store_f16_part(p, x, count);
}
// What a number is once it was stored.
inline Floats rounded(RowElement element, Floats x) {
  if (element == RowElement::f32) return x;
  alignas(64) uint16_t stored[lanes];
  store_some(element, stored, 0, x, lanes);
  return load_lanes(element, stored, 0);
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

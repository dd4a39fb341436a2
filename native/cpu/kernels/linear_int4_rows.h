// What both ways to compute share: sizes, the preparation of activations, and
// the output.
#pragma once

#include <cstring>

#include "simd/unroll.h"
#include "tesseral/linear_int4.h"
#include TESSERAL_FLOATS
#include TESSERAL_SIMD

namespace tesseral::TESSERAL_TARGET {
namespace {

using std::int32_t;
using std::int64_t;
using std::int8_t;
using std::uint16_t;
using std::uint8_t;

// Weights are offset to 0..15, since instructions multiply unsigned by signed
// bytes; a sum then starts at what that adds.
constexpr int weight_offset = 8;
// Elements whose codes fill a vector, and those that one lane of 32 bits gets
// of them.
constexpr int64_t chunk = 2 * vector_bytes;
constexpr int64_t lane_elements = 8;

int64_t packed_bytes(int64_t k) { return (k + 1) / 2; }
int64_t groups_of(const LinearInt4& call) { return call.k / call.group; }
int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t n_chunks(int64_t k) { return (k + chunk - 1) / chunk; }

int32_t sum_of(const int8_t* p, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += p[i];
  return sum;
}

int32_t magnitude_of(const int8_t* p, int64_t count) {
  int32_t largest = 1;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t absolute = p[i] < 0 ? -p[i] : p[i];
    largest = absolute > largest ? absolute : largest;
  }
  return largest;
}

void note_magnitude(const LinearInt4& call, int64_t row) {
  if (words_are_ints) return;
  call.magnitudes[row] = magnitude_of(call.activations + row * call.stride, call.k);
}

// How many sums of two products fit 16 bits, where sums are kept there.
int64_t sums_in_16_bits(const int32_t* magnitudes, int rows) {
  if (words_are_ints) return INT64_MAX / 4;
  int32_t largest = 1;
  for (int r = 0; r < rows; ++r) largest = magnitudes[r] > largest ? magnitudes[r] : largest;
  return 32767 / (2 * 15 * largest);
}

// What `count` <= lanes sums of one output row become. `scale` and `bias` begin
// at its columns.
inline void write_floats(LinearOutput output, Floats x, const float* bias, void* out, int64_t at,
                         int count) {
  const bool whole = count == lanes;
  if (bias != nullptr) x = add(x, whole ? load(bias) : load_part(bias, count));
  if (output == LinearOutput::f32) {
    float* p = static_cast<float*>(out) + at;
    whole ? store(p, x) : store_part(p, x, count);
  } else {
    uint16_t* p = static_cast<uint16_t*>(out) + at;
    whole ? store_bf16(p, x) : store_bf16_part(p, x, count);
  }
}

inline void write_sums(const int32_t* sums, void* out, int64_t at, int64_t count) {
  int32_t* p = static_cast<int32_t*>(out) + at;
  for (int64_t i = 0; i < count; ++i) p[i] = sums[i];
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

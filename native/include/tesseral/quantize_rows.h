// Rows times a Kronecker product of matrices, and then to signed codes with a scale for each row.
#pragma once

#include <cstdint>

#include "tesseral/status.h"

namespace tesseral {

enum class RowElement : std::uint8_t { f32, bf16, f16 };

// One call. A row x of left * right elements, as a matrix X of left rows, becomes
//   Y = left_factor^T X right_factor,
// computed in float32, or in products of pairs of bfloat16 where `left_pairs` is given: factors and
// X right_factor are then rounded to bfloat16, and a code may be off by one. Pairs of AVX2 are
// integers of 16 bits, with smaller roundings than those, in steps of the largest elements. With
// low = min(Y) * clip[0], high = max(Y) * clip[1] and L = 2^(bits - 1),
//   size = max(max(-low, high) / L, min(-low, high) / (L - 1), 2^-60),
//   scale = high > -low ? -size : size,  codes = clamp(round(Y / scale), -L, L - 1),
// with ties to even. A row that holds infinity or NaN gets NaN as its scale.
// Where `dense` is given, Y itself goes there, rounded to the type of the rows.
struct QuantizeRows {
  RowElement element = RowElement::f32;
  const void* rows = nullptr;  // [m, left * right]
  std::int64_t stride = 0;     // elements from one row to the next
  std::int64_t m = 0;
  std::int64_t left = 0;
  std::int64_t right = 0;
  const float* left_factor = nullptr;   // [left, left], or null for the identity
  const float* right_factor = nullptr;  // [right, right], likewise
  const float* clip = nullptr;          // [2]
  int bits = 0;                         // 2 to 8
  std::int8_t* codes = nullptr;         // [m, left * right], fully written
  std::int64_t codes_stride = 0;
  float* scale = nullptr;  // [m]
  void* dense = nullptr;   // [m, left * right], or null; codes are then not written

  // [right, padded(right)], 64-byte aligned: the right factor with zeros after each row.
  const float* padded_factor = nullptr;
  // Factors as `prepare_pairs` gives them, 64-byte aligned, or null.
  const float* left_pairs = nullptr;
  const float* right_pairs = nullptr;
};

// Floats that factors take as `prepare_pairs` gives them.
struct PairSizes {
  std::int64_t left = 0;
  std::int64_t right = 0;
};

// What each instruction set provides.
struct QuantizeRowsKernels {
  // `right`, rounded up to whole vectors.
  std::int64_t (*padded)(std::int64_t right);
  // Whether rows of such sizes can be multiplied as pairs.
  bool (*takes_pairs)(const QuantizeRows& call);
  PairSizes (*pair_sizes)(const QuantizeRows& call);
  // Fills so many floats, each of which is a pair.
  Status (*prepare_pairs)(const QuantizeRows& call, float* left_pairs, float* right_pairs);
  // Floats of scratch memory for one worker.
  std::int64_t (*scratch)(const QuantizeRows& call);
  // Transforms and quantises rows [begin, end); scratch is 64-byte aligned.
  Status (*run)(const QuantizeRows& call, std::int64_t begin, std::int64_t end, float* scratch);
};

}  // namespace tesseral

// Linear layers over packed 4-bit weights whose input stays in floating point.
#pragma once

#include <cstdint>

#include "tesseral/linear_int4.h"
#include "tesseral/quantize_rows.h"

namespace tesseral {

// One call. Weights are as those of LinearInt4, with the same sizes of groups, and
//   out = sum over groups of scale * (sum of x * code) + bias,
// summed in float32, codes being exact; rounded to the type of the output at the end.
struct WeightOnly {
  RowElement element = RowElement::f32;  // of the rows: float32 or bfloat16
  const void* rows = nullptr;            // [m, k]
  std::int64_t stride = 0;               // elements from one row to the next
  const LinearInt4Weight* weights = nullptr;
  int n_weights = 0;
  std::int64_t m = 0;
  std::int64_t k = 0;
  std::int64_t group = 0;
  LinearOutput output = LinearOutput::f32;  // or bfloat16
  // Whether panels multiply pairs of bfloat16; rows of float32 are not rounded for it.
  bool pairs = false;

  float* prepared = nullptr;  // rows_floats, 64-byte aligned, filled by `prepare`
};

// What each instruction set provides: the two ways of LinearInt4Kernels. In a tile, `sums` holds
// floats.
struct WeightOnlyKernels {
  bool (*takes_pairs)(const WeightOnly& call);
  // Of all prepared rows.
  std::int64_t (*rows_floats)(const WeightOnly& call, bool stream);
  LinearPanels (*panel_sizes)(const WeightOnly& call);
  Status (*prepare)(const WeightOnly& call, bool stream, std::int64_t begin, std::int64_t end);
  Status (*stream)(const WeightOnly& call, const LinearInt4Tile& tile);
  Status (*panels)(const WeightOnly& call, const LinearInt4Tile& tile);
};

}  // namespace tesseral

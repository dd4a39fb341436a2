// Rows divided by their root mean square and scaled channel by channel.
#pragma once

#include <cstdint>

#include "tesseral/quantize_rows.h"

namespace tesseral {

// One call: out = round(x / sqrt(mean(x^2) + epsilon)) * weight, computed in float32. Rows, weight
// and output are of one type, to which both steps are rounded.
struct NormRows {
  RowElement element = RowElement::f32;
  const void* rows = nullptr;  // [m, n]
  std::int64_t stride = 0;     // elements from one row to the next
  std::int64_t m = 0;
  std::int64_t n = 0;
  const void* weight = nullptr;  // [n]
  float epsilon = 0;
  void* out = nullptr;  // [m, n], dense
};

struct NormRowsKernels {
  Status (*run)(const NormRows& call, std::int64_t begin, std::int64_t end);
};

}  // namespace tesseral

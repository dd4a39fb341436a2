// A dense weight times few rows, at the speed at which memory gives the weight.
#pragma once

#include <cstdint>

#include "tesseral/quantize_rows.h"

namespace tesseral {

constexpr std::int64_t dense_rows_most = 4;       // rows of a call
constexpr std::int64_t dense_rows_multiple = 32;  // elements of a row: whole vectors everywhere

// One call: out = rows weight^T, summed in float32; all of one type, float32 or bfloat16, and
// dense.
struct DenseRows {
  RowElement element = RowElement::f32;
  const void* rows = nullptr;    // [m, k]
  const void* weight = nullptr;  // [n, k]
  void* out = nullptr;           // [m, n]
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;

  const float* prepared = nullptr;  // [m, k] as `prepare` gives it, 64-byte aligned
};

struct DenseRowsKernels {
  Status (*prepare)(const DenseRows& call, float* prepared);
  // Columns [begin, end) of the output.
  Status (*run)(const DenseRows& call, std::int64_t begin, std::int64_t end);
};

}  // namespace tesseral

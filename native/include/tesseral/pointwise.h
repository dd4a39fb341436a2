// Elementwise steps between the layers of a block.
#pragma once

#include <cstdint>

#include "tesseral/quantize_rows.h"

namespace tesseral {

// One call on `count` numbers of one type, each step rounded to it:
//   out = silu(first) * second, or first + second.
struct Pointwise {
  RowElement element = RowElement::f32;
  const void* first = nullptr;
  const void* second = nullptr;
  void* out = nullptr;
  std::int64_t count = 0;
};

struct PointwiseKernels {
  Status (*gate)(const Pointwise& call);
  Status (*add)(const Pointwise& call);
};

}  // namespace tesseral

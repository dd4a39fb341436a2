// Elementwise steps between the layers of a block.
#include "tesseral/pointwise.h"

#include "kernels/row_elements.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr float log2_of_e = 1.44269504088896341f;

// x / (1 + e^-x), with the exponential of what is not positive, which does not overflow.
inline Floats silu(Floats x) {
  const Floats size = magnitude(x);
  const Floats power = exp2_of_negative(multiply(size, broadcast(-log2_of_e)));
  // x / (1 + e^-x) where x is positive, x e^x / (1 + e^x) where it is negative
  const Floats negative = multiply(subtract(x, size), broadcast(0.5f));
  const Floats positive = subtract(x, negative);
  return divide(add(positive, multiply(negative, power)), add(broadcast(1.0f), power));
}

template <class Step>
Status each_vector(const Pointwise& call, Step step) {
  if (call.count < 0) return Status::invalid;
  for (int64_t i = 0; i < call.count; i += lanes) {
    const int count = static_cast<int>(smaller(lanes, call.count - i));
    const auto part = [&](const void* p) {
      return count == lanes ? load_lanes(call.element, p, i) : load_some(call.element, p, i, count);
    };
    store_some(call.element, call.out, i, step(part(call.first), part(call.second)), count);
  }
  return Status::ok;
}

Status gate(const Pointwise& call) {
  return each_vector(
      call, [&](Floats a, Floats b) { return multiply(rounded(call.element, silu(a)), b); });
}

Status add_rows(const Pointwise& call) {
  return each_vector(call, [](Floats a, Floats b) { return add(a, b); });
}

}  // namespace

extern const PointwiseKernels pointwise;
const PointwiseKernels pointwise = {gate, add_rows};

}  // namespace tesseral::TESSERAL_TARGET

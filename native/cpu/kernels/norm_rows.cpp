// Rows divided by their root mean square; a row is read twice, the second time from the L1 cache.
#include "tesseral/norm_rows.h"

#include <math.h>  // std::sqrt is a function that files for other targets would share

#include "kernels/row_elements.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

inline Floats part(const NormRows& call, const void* p, int64_t at, int count) {
  return count == lanes ? load_lanes(call.element, p, at) : load_some(call.element, p, at, count);
}

float sum_of_squares(const NormRows& call, int64_t first) {
  constexpr int n_sums = 4;
  Floats sums[n_sums] = {zero(), zero(), zero(), zero()};
  int next = 0;
  for (int64_t i = 0; i < call.n; i += lanes) {
    const Floats x = part(call, call.rows, first + i, static_cast<int>(smaller(lanes, call.n - i)));
    sums[next] = multiply_add(x, x, sums[next]);
    next = (next + 1) % n_sums;
  }
  return sum_lanes(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

Status run(const NormRows& call, int64_t begin, int64_t end) {
  if (call.n < 1 || call.stride < call.n || begin < 0 || end > call.m) return Status::invalid;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * call.stride;
    const float mean = sum_of_squares(call, first) / static_cast<float>(call.n);
    const Floats inverse = broadcast(1.0f / sqrtf(mean + call.epsilon));
    for (int64_t i = 0; i < call.n; i += lanes) {
      const int count = static_cast<int>(smaller(lanes, call.n - i));
      const Floats x = part(call, call.rows, first + i, count);
      const Floats y = rounded(call.element, multiply(x, inverse));
      store_some(call.element, call.out, row * call.n + i,
                 multiply(y, part(call, call.weight, i, count)), count);
    }
  }
  return Status::ok;
}

}  // namespace

extern const NormRowsKernels norm_rows;
const NormRowsKernels norm_rows = {run};

}  // namespace tesseral::TESSERAL_TARGET

#include "quantized_linear.h"

#include "linear_int4.h"
#include "memory.h"
#include "quantize_rows.h"

namespace tesseral {

Status quantized_linear(const Target& target, QuantizeRows rows, LinearInt4 products,
                        int n_threads) {
  const std::int64_t k = rows.left * rows.right;
  if (rows.m < 0 || k < 1 || k > linear_int4_max_k) return Status::invalid;
  if (rows.m == 0) return Status::ok;
  // rows a multiple of 512 bytes apart fall into few sets of the caches
  const std::int64_t stride = k % 512 == 0 ? k + 64 : k;
  const Buffer<std::int8_t> codes = allocate<std::int8_t>(rows.m * stride);
  const Buffer<float> scale = allocate<float>(rows.m);
  rows.codes = codes.get();
  rows.codes_stride = stride;
  rows.scale = scale.get();
  products.activations = codes.get();
  products.activation_scale = scale.get();
  products.stride = stride;
  products.m = rows.m;
  products.k = k;
  if (rows.m > linear_int4_streamed_rows) {
    const Status quantised = quantize_rows(target, rows, n_threads);
    if (quantised != Status::ok) return quantised;
    return linear_int4(target, products, n_threads);
  }
  const RowsToQuantize given(target, rows);
  if (given.status() != Status::ok) return given.status();
  const std::int64_t floats = given.scratch();
  const Buffer<float> scratch = allocate<float>(rows.m * floats);
  return linear_int4(target, products, n_threads, [&](std::int64_t row) {
    return given.run(row, row + 1, scratch.get() + row * floats);
  });
}

}  // namespace tesseral

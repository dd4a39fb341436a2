#include "quantized_linear.h"

#include <algorithm>
#include <atomic>

#include "linear_int4.h"
#include "memory.h"
#include "quantize_rows.h"
#include "threads.h"

namespace tesseral {
namespace {

using std::int64_t;

constexpr int64_t few_rows = 4;                // are quantised by one thread
constexpr int64_t fetched_bytes = 768 * 1024;  // that others fetch meanwhile: most of an L2 cache
constexpr int64_t line = 64;

// Fetches the first weights until `done`, or until there are enough.
void fetch_weights(const LinearInt4& products, int64_t k, const std::atomic<bool>& done) {
  int64_t left = fetched_bytes;
  for (int i = 0; i < products.n_weights && left > 0; ++i) {
    const LinearInt4Weight& weight = products.weights[i];
    const int64_t bytes = std::min(left, weight.n * ((k + 1) / 2));
    for (int64_t at = 0; at < bytes; at += line) {
      if (at % 4096 == 0 && done.load(std::memory_order_relaxed)) return;
      __builtin_prefetch(weight.codes + at, 0, 2);
    }
    left -= bytes;
  }
}

// Few rows take one thread, and memory would rest while it computes.
Status quantize(const Target& target, const QuantizeRows& rows, const LinearInt4& products,
                int n_threads) {
  if (rows.m > few_rows || n_threads == 1) return quantize_rows(target, rows, n_threads);
  Status status = Status::ok;
  std::atomic<bool> done{false};
  parallel_for(2, 2, [&](int64_t task, int) {
    if (task == 0) {
      status = quantize_rows(target, rows, 1);
      done.store(true);
    } else {
      fetch_weights(products, rows.left * rows.right, done);
    }
  });
  return status;
}

}  // namespace

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
  const Status quantised = quantize(target, rows, products, n_threads);
  if (quantised != Status::ok) return quantised;
  products.activations = codes.get();
  products.activation_scale = scale.get();
  products.stride = stride;
  products.m = rows.m;
  products.k = k;
  return linear_int4(target, products, n_threads);
}

}  // namespace tesseral

#include "quantize_rows.h"

#include <algorithm>
#include <atomic>

#include "memory.h"
#include "pairs.h"
#include "threads.h"

namespace tesseral {
namespace {

using std::int64_t;

constexpr double products_per_thread = 1e6;  // with fewer, waking it costs more than it saves

// The right factor with zeros after each row, or itself where its rows are whole vectors.
Buffer<float> pad(const QuantizeRows& call, int64_t width) {
  Buffer<float> padded = allocate<float>(call.right * width);
  for (int64_t i = 0; i < call.right; ++i) {
    const float* row = call.right_factor + i * call.right;
    std::copy(row, row + call.right, padded.get() + i * width);
    std::fill(padded.get() + i * width + call.right, padded.get() + (i + 1) * width, 0.0f);
  }
  return padded;
}

}  // namespace

Status quantize_rows(const Target& target, const QuantizeRows& given, int n_threads) {
  constexpr int64_t most = int64_t{1} << 24;
  if (given.m < 0 || given.left < 1 || given.right < 1 || given.left > most || given.right > most ||
      n_threads < 1) {
    return Status::invalid;
  }
  const bool coded = given.dense == nullptr;
  if (coded &&
      (given.bits < 2 || given.bits > 8 || given.codes_stride < given.left * given.right)) {
    return Status::invalid;
  }
  if (given.m == 0) return Status::ok;
  const QuantizeRowsKernels& kernels = target.quantize_rows;
  QuantizeRows call = given;
  Buffer<float> factor;
  Buffer<float> left_pairs;
  Buffer<float> right_pairs;
  // where there are no products of bfloat16, pairs are of integers
  const bool pay = target.ceilings.dot_bf16 == nullptr || pairs_pay(target);
  if (coded && kernels.takes_pairs(call) && pay) {
    const PairSizes sizes = kernels.pair_sizes(call);
    left_pairs = allocate<float>(sizes.left);
    right_pairs = allocate<float>(sizes.right);
    const Status status = kernels.prepare_pairs(call, left_pairs.get(), right_pairs.get());
    if (status != Status::ok) return status;
    call.left_pairs = left_pairs.get();
    call.right_pairs = right_pairs.get();
  } else if (call.right_factor != nullptr) {
    const int64_t width = kernels.padded(call.right);
    if (width == call.right) {
      call.padded_factor = call.right_factor;
    } else {
      factor = pad(call, width);
      call.padded_factor = factor.get();
    }
  }
  const double row = 1.0 * call.left * call.right *
                     (4.0 + (call.left_factor != nullptr ? 1.0 * call.left : 0) +
                      (call.right_factor != nullptr ? 1.0 * call.right : 0));
  const double worth = row * call.m / products_per_thread;
  n_threads = static_cast<int>(std::clamp<double>(worth, 1, n_threads));
  // a few tasks a thread, so that one that starts late does less
  const int64_t rows = std::max<int64_t>(1, ceil_div(call.m, int64_t{8} * n_threads));
  const int64_t scratch_floats = ceil_div(kernels.scratch(call), 16) * 16;
  const Buffer<float> scratch = allocate<float>(n_threads * scratch_floats);
  std::atomic<Status> status{Status::ok};
  parallel_for(ceil_div(call.m, rows), n_threads, [&](int64_t task, int worker) {
    const int64_t begin = task * rows;
    const Status done = kernels.run(call, begin, std::min(begin + rows, call.m),
                                    scratch.get() + worker * scratch_floats);
    if (done != Status::ok) status.store(done);
  });
  return status.load();
}

}  // namespace tesseral

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

Status check(const QuantizeRows& call) {
  constexpr int64_t most = int64_t{1} << 24;
  if (call.m < 0 || call.left < 1 || call.right < 1 || call.left > most || call.right > most) {
    return Status::invalid;
  }
  const bool coded = call.dense == nullptr;
  if (coded && (call.bits < 2 || call.bits > 8 || call.codes_stride < call.left * call.right)) {
    return Status::invalid;
  }
  return Status::ok;
}

}  // namespace

RowsToQuantize::RowsToQuantize(const Target& target, const QuantizeRows& call)
    : kernels_(target.quantize_rows), call_(call), status_(check(call)) {
  if (status_ != Status::ok || call.m == 0) return;
  // where there are no products of bfloat16, pairs are of integers
  const bool pay = target.ceilings.dot_bf16 == nullptr || pairs_pay(target);
  if (call.dense == nullptr && kernels_.takes_pairs(call) && pay) {
    const PairSizes sizes = kernels_.pair_sizes(call);
    left_pairs_ = allocate<float>(sizes.left);
    right_pairs_ = allocate<float>(sizes.right);
    status_ = kernels_.prepare_pairs(call, left_pairs_.get(), right_pairs_.get());
    call_.left_pairs = left_pairs_.get();
    call_.right_pairs = right_pairs_.get();
  } else if (call.right_factor != nullptr) {
    const int64_t width = kernels_.padded(call.right);
    if (width != call.right) factor_ = pad(call, width);
    call_.padded_factor = width == call.right ? call.right_factor : factor_.get();
  }
}

int RowsToQuantize::threads(int n_threads) const {
  const double row = 1.0 * call_.left * call_.right *
                     (4.0 + (call_.left_factor != nullptr ? 1.0 * call_.left : 0) +
                      (call_.right_factor != nullptr ? 1.0 * call_.right : 0));
  return static_cast<int>(std::clamp<double>(row * call_.m / products_per_thread, 1, n_threads));
}

int64_t RowsToQuantize::scratch() const { return ceil_div(kernels_.scratch(call_), 16) * 16; }

Status RowsToQuantize::run(int64_t begin, int64_t end, float* scratch) const {
  return kernels_.run(call_, begin, end, scratch);
}

Status quantize_rows(const Target& target, const QuantizeRows& call, int n_threads) {
  if (n_threads < 1) return Status::invalid;
  const RowsToQuantize given(target, call);
  if (given.status() != Status::ok || call.m == 0) return given.status();
  n_threads = given.threads(n_threads);
  // a few tasks a thread, so that one that starts late does less
  const int64_t rows = std::max<int64_t>(1, ceil_div(call.m, int64_t{8} * n_threads));
  const int64_t scratch_floats = given.scratch();
  const Buffer<float> scratch = allocate<float>(n_threads * scratch_floats);
  std::atomic<Status> status{Status::ok};
  parallel_for(ceil_div(call.m, rows), n_threads, [&](int64_t task, int worker) {
    const int64_t begin = task * rows;
    const Status done =
        given.run(begin, std::min(begin + rows, call.m), scratch.get() + worker * scratch_floats);
    if (done != Status::ok) status.store(done);
  });
  return status.load();
}

}  // namespace tesseral

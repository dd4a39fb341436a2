#include "model_rows.h"

#include <algorithm>
#include <atomic>

#include "memory.h"
#include "threads.h"

namespace tesseral {
namespace {

using std::int64_t;

// With less for each, waking a thread costs more than it saves.
constexpr double operations_per_thread = 1e6;
constexpr int64_t task_bytes = 512 * 1024;  // of a dense weight

int worth_threads(double operations, int n_threads) {
  return static_cast<int>(std::clamp<double>(operations / operations_per_thread, 1, n_threads));
}

// Calls run(begin, end, worker) for parts of [0, count), a few for each thread.
template <class Run>
Status in_parts(int64_t count, int64_t part, int n_threads, Run&& run) {
  std::atomic<Status> status{Status::ok};
  parallel_for(ceil_div(count, part), n_threads, [&](int64_t task, int worker) {
    const Status done = run(task * part, std::min((task + 1) * part, count), worker);
    if (done != Status::ok) status.store(done);
  });
  return status.load();
}

int64_t part_of(int64_t count, int n_threads) {
  return std::max<int64_t>(1, ceil_div(count, int64_t{8} * n_threads));
}

}  // namespace

Status norm_rows(const Target& target, const NormRows& call, int n_threads) {
  if (call.m < 0 || call.n < 1 || call.stride < call.n || n_threads < 1) return Status::invalid;
  n_threads = worth_threads(8.0 * call.m * call.n, n_threads);
  return in_parts(
      call.m, part_of(call.m, n_threads), n_threads,
      [&](int64_t begin, int64_t end, int) { return target.norm_rows.run(call, begin, end); });
}

Status head_rows(const Target& target, const HeadRows& call, int n_threads) {
  if (call.batch < 0 || call.heads < 0 || call.tokens < 0 || call.dim < 1 || n_threads < 1) {
    return Status::invalid;
  }
  const int64_t count = call.batch * call.heads * call.tokens;
  const double each = call.factor == nullptr ? 8.0 * call.dim : 2.0 * call.dim * call.dim;
  n_threads = worth_threads(each * count, n_threads);
  const int64_t floats = ceil_div(target.head_rows.scratch(call), 16) * 16;
  const Buffer<float> scratch = allocate<float>(n_threads * floats);
  return in_parts(count, part_of(count, n_threads), n_threads,
                  [&](int64_t begin, int64_t end, int worker) {
                    return target.head_rows.run(call, begin, end, scratch.get() + worker * floats);
                  });
}

Status dense_rows(const Target& target, const DenseRows& given, int n_threads) {
  if (given.n < 0 || given.m < 0 || n_threads < 1) return Status::invalid;
  if (given.m == 0) return Status::ok;
  DenseRows call = given;
  const Buffer<float> prepared = allocate<float>(call.m * call.k);
  const Status status = target.dense_rows.prepare(call, prepared.get());
  if (status != Status::ok) return status;
  call.prepared = prepared.get();
  n_threads = worth_threads(2.0 * call.m * call.n * call.k, n_threads);
  const int64_t part = std::max<int64_t>(1, task_bytes / (2 * call.k));
  return in_parts(call.n, part, n_threads, [&](int64_t begin, int64_t end, int) {
    return target.dense_rows.run(call, begin, end);
  });
}

}  // namespace tesseral

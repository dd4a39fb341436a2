// Rows transformed and quantised, on all threads.
#pragma once

#include "dispatch.h"
#include "memory.h"

namespace tesseral {

// The rows of a call, to be quantised in parts, and what all parts read.
class RowsToQuantize {
 public:
  // `padded_factor` of `call` and its pairs are ignored. Throws std::bad_alloc if there is no
  // memory for what parts read.
  RowsToQuantize(const Target& target, const QuantizeRows& call);

  // Of the sizes; where these are invalid, no part may be run.
  Status status() const { return status_; }
  // Threads that are worth waking, of so many.
  int threads(int n_threads) const;
  // Floats of memory that a part needs while it runs, whole cache lines.
  std::int64_t scratch() const;
  // Fills codes and scale, or `dense`, of rows [begin, end).
  Status run(std::int64_t begin, std::int64_t end, float* scratch) const;

 private:
  const QuantizeRowsKernels& kernels_;
  QuantizeRows call_;
  Status status_;
  Buffer<float> factor_;
  Buffer<float> left_pairs_;
  Buffer<float> right_pairs_;
};

// Fills all rows.
// Throws std::bad_alloc if there is no memory for scratch.
Status quantize_rows(const Target& target, const QuantizeRows& call, int n_threads);

}  // namespace tesseral

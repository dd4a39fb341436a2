// The integer linear layer over all its tiles: memory, blocking and threads.
#pragma once

#include <functional>

#include "dispatch.h"

namespace tesseral {

// At most so many rows read weights as they are stored. Measured, not derived.
constexpr std::int64_t linear_int4_streamed_rows = 12;

// Fills out[m, n] of every weight; the scratch pointers of `call` are ignored.
// Throws std::bad_alloc if there is no memory for scratch.
Status linear_int4(const Target& target, const LinearInt4& call, int n_threads);

// The same for at most linear_int4_streamed_rows rows, of which fill(row) writes the activations
// and their scale first: on the threads of the products, which ask for weights while they wait for
// the last row. It must not throw, and rows are filled at the same time.
using FillRow = std::function<Status(std::int64_t row)>;
Status linear_int4(const Target& target, const LinearInt4& call, int n_threads,
                   const FillRow& fill);

}  // namespace tesseral

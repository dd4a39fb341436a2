// Rows transformed and quantised, on all threads.
#pragma once

#include "dispatch.h"

namespace tesseral {

// Fills codes and scale; `padded_factor` of `call` is ignored.
// Throws std::bad_alloc if there is no memory for scratch.
Status quantize_rows(const Target& target, const QuantizeRows& call, int n_threads);

}  // namespace tesseral

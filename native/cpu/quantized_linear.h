// Linear layers over packed weights that transform and quantise what they read, on all threads.
#pragma once

#include "dispatch.h"

namespace tesseral {

// Turns the rows of `rows` into codes and fills the outputs of `products` from these. Codes and
// scales stay in scratch memory: neither call needs to hold any.
// Throws std::bad_alloc if there is no memory for scratch.
Status quantized_linear(const Target& target, QuantizeRows rows, LinearInt4 products,
                        int n_threads);

}  // namespace tesseral

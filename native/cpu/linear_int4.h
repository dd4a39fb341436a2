// The integer linear layer over all its tiles: memory, blocking and threads.
#pragma once

#include "dispatch.h"

namespace tesseral {

// Fills out[m, n] from activations, weight and sizes; the scratch pointers of `call` are ignored.
// Throws std::bad_alloc if there is no memory for scratch.
Status linear_int4(const Target& target, LinearInt4 call, int n_threads);

}  // namespace tesseral

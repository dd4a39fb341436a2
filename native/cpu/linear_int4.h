// The integer linear layer over all its tiles: memory, blocking and threads.
#pragma once

#include "dispatch.h"

namespace tesseral {

// Fills out[m, n] of every weight; the scratch pointers of `call` are ignored.
// Throws std::bad_alloc if there is no memory for scratch.
Status linear_int4(const Target& target, const LinearInt4& call, int n_threads);

}  // namespace tesseral

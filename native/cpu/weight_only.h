// Linear layers over packed 4-bit weights and floating rows, across threads.
#pragma once

#include "dispatch.h"

namespace tesseral {

// Computes a call, whose `prepared` and `pairs` are chosen here. Throws std::bad_alloc if there is
// no memory for scratch.
Status weight_only(const Target& target, const WeightOnly& call, int n_threads);

}  // namespace tesseral

// Exact attention: shares a call out among threads.
#pragma once

#include "dispatch.h"
#include "tesseral/attention.h"

namespace tesseral {

// Fills call.output, and call.lse if asked for. Throws std::invalid_argument if the sizes break
// the contract of AttentionCall, std::bad_alloc without memory.
void attention(const Target& target, const AttentionCall& call, int n_threads);

}  // namespace tesseral

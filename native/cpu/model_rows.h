// What a model does with few tokens besides its quantised layers, on all threads.
#pragma once

#include "dispatch.h"

namespace tesseral {

Status norm_rows(const Target& target, const NormRows& call, int n_threads);
// Throws std::bad_alloc if there is no memory for scratch; so does the next.
Status head_rows(const Target& target, const HeadRows& call, int n_threads);
Status dense_rows(const Target& target, const DenseRows& call, int n_threads);

}  // namespace tesseral

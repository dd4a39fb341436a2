// Measures what an instruction set could do at most, on several threads.
#pragma once

#include <string>

#include "dispatch.h"

namespace tesseral {

// Operations done, and the time they took; no operations where there is no such instruction.
struct Rate {
  double operations = 0;
  double seconds = 0;
};

// Runs `rounds` rounds of products on every thread at once. `kind` is one of fma_fp32, dot_bf16,
// dot_int8; throws std::invalid_argument for another.
Rate measure_products(const Target& target, const std::string& kind, std::int64_t rounds,
                      int n_threads);

// Reads `bytes` bytes once, on all threads together.
Rate measure_read(const Target& target, const std::uint8_t* data, std::int64_t bytes,
                  int n_threads);

}  // namespace tesseral

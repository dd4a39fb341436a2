// Layers that read the same rows, as Python holds them.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "addresses.h"
#include "cpu/decoder_block.h"

namespace tesseral {

// How the rows are prepared, and the weights. What changes from call to call are addresses, so a
// call passes nothing else.
class QuantizedLinears {
 public:
  // Addresses of codes, scale and bias (or 0), and the number of rows.
  using Weight = std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::int64_t>;

  QuantizedLinears(std::int64_t left, std::int64_t right, std::uintptr_t left_factor,
                   std::uintptr_t right_factor, std::uintptr_t clip, int bits, std::int64_t group,
                   const std::vector<Weight>& weights);

  void run(const std::string& element, std::uintptr_t rows, std::int64_t stride, std::int64_t m,
           const std::vector<std::uintptr_t>& outs, bool bf16, int threads,
           const std::string& target) const;

  const LayersOfInput& layers() const { return layers_; }

 private:
  LayersOfInput layers_;
};

}  // namespace tesseral

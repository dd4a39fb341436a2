// What an instruction set could do at most: products from registers alone, and reading memory.
#pragma once

#include <cstdint>

namespace tesseral {

// Runs `rounds` rounds of independent products and writes something that depends on all of them to
// `sink`, so that none can be left out. Returns the operations of one round; a multiplication and
// an addition count one each.
using Products = std::int64_t (*)(std::int64_t rounds, float* sink);

// What each instruction set provides; a null pointer where it has no such instruction.
struct CeilingKernels {
  Products fma_fp32;  // multiply and add in float32
  Products dot_bf16;  // pairs of bfloat16 products, added to float32
  Products dot_int8;  // four products of unsigned and signed bytes, added to int32
  // Reads all bytes once, in order, and returns something that depends on each of them.
  std::uint64_t (*read)(const std::uint8_t* data, std::int64_t bytes);
};

}  // namespace tesseral

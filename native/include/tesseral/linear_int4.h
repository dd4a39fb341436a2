// The integer linear layer: int8 activations times packed int4 weights, exact in int32.
#pragma once

#include <cstdint>

#include "tesseral/status.h"

namespace tesseral {

// Sums of products with weights offset to 0..15 must fit int32: 15 * 128 * k < 2^31.
constexpr std::int64_t linear_int4_max_k = std::int64_t{1} << 20;

// What the kernel must know of an activation row beside its values.
struct RowSummary {
  std::int32_t offset;     // 8 * sum of the row: what offsetting the weights by 8 added
  std::int32_t magnitude;  // largest absolute value: bounds how long sums may stay in 16 bits
};

// One call. All matrices are row-major and dense.
struct LinearInt4 {
  const std::int8_t* activations;  // [m, k]
  const std::uint8_t* weight;      // [n, (k + 1) / 2], element 2j in the low nibble of byte j
  std::int32_t* out;               // [m, n], fully written
  std::int64_t m;
  std::int64_t n;
  std::int64_t k;
  std::int8_t* rows;      // [m, row_bytes(k)], 64-byte aligned, written by `prepare`
  RowSummary* summaries;  // [m], written by `prepare`
};

// A rectangle of the output, and memory for the weights it needs once unpacked.
struct LinearInt4Tile {
  std::int64_t row_begin, row_end;
  std::int64_t column_begin, column_end;
  std::uint8_t* panel;  // [column_end - column_begin, row_bytes(k)], 64-byte aligned
};

// What each instruction set provides.
struct LinearInt4Kernels {
  // Bytes of one prepared activation row or unpacked weight row; a multiple of 64.
  std::int64_t (*row_bytes)(std::int64_t k);
  // Fills rows and summaries for activation rows [begin, end).
  Status (*prepare)(const LinearInt4& call, std::int64_t begin, std::int64_t end);
  // Computes one tile; all its rows must have been prepared.
  Status (*compute)(const LinearInt4& call, const LinearInt4Tile& tile);
};

}  // namespace tesseral

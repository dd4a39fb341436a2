// Linear layers over packed 4-bit weights and int8 activations; integer sums
// are exact.
#pragma once

#include <cstdint>

#include "tesseral/status.h"

namespace tesseral {

// Sums of products with weights offset to 0..15 must fit int32: 15 * 128 * k <
// 2^31.
constexpr std::int64_t linear_int4_max_k = std::int64_t{1} << 20;
// Columns of the output that are computed together from one panel of unpacked
// weights, where the instruction set does not say otherwise.
constexpr std::int64_t linear_int4_panel = 64;

// Whether a row of k weights may have a scale for every `group` of them. A
// vector of packed bytes holds groups whole, or a group holds vectors whole, on
// every target. Static, so that each instruction set compiles its own.
static constexpr bool linear_int4_takes_groups(std::int64_t k, std::int64_t group) {
  return group == k || (group > 0 && k % group == 0 &&
                        (group % 128 == 0 || group == 64 || group == 32 || group == 16));
}

enum class LinearOutput : std::uint8_t { sums, f32, bf16 };

// A weight matrix that reads the activations of a call.
struct LinearInt4Weight {
  const std::uint8_t* codes = nullptr;  // [n, (k + 1) / 2], element 2j in the low nibble of byte j
  const float* scale = nullptr;         // [n, k / group]; not read for sums
  const float* bias = nullptr;          // [n], or null
  void* out = nullptr;                  // [m, n], fully written
  std::int64_t n = 0;
};

// One call. Matrices are row-major, and dense but for the activations. With one
// group,
//   out = (sum * activation_scale) * scale + bias, rounded after each step,
// and with several, activation_scale * (sum over groups of scale * sum) + bias.
struct LinearInt4 {
  const std::int8_t* activations = nullptr;  // [m, k]
  std::int64_t stride = 0;                   // bytes from one row of them to the next
  const float* activation_scale = nullptr;   // [m]; not read for sums
  const LinearInt4Weight* weights = nullptr;
  int n_weights = 0;
  std::int64_t m = 0;
  std::int64_t k = 0;
  std::int64_t group = 0;
  LinearOutput output = LinearOutput::sums;  // int32, float32 or bfloat16

  // Filled by `prepare`, the last two where sums need them.
  std::int8_t* rows = nullptr;         // rows_bytes, 64-byte aligned
  std::int32_t* offsets = nullptr;     // [m, k / group]: -8 * the sum of the row's group
  std::int32_t* magnitudes = nullptr;  // [m]: largest absolute value of a row, at least 1
};

// A rectangle of one weight's output, and memory for what it needs.
struct LinearInt4Tile {
  int weight = 0;
  std::int64_t row_begin = 0, row_end = 0;
  std::int64_t column_begin = 0, column_end = 0;
  std::uint8_t* panel = nullptr;  // LinearPanels::bytes, 64-byte aligned, for `panels` only
  std::int32_t* sums = nullptr;   // [row_end - row_begin, LinearPanels::sums], likewise
};

// How an instruction set cuts a call whose weights it unpacks.
struct LinearPanels {
  std::int64_t columns = linear_int4_panel;  // of a tile; its columns begin at a multiple of them
  std::int64_t rows = 0;                     // of a tile at most
  std::int64_t row_step = 1;                 // of which a tile has whole ones, but for the last
  std::int64_t bytes = 0;                    // of memory for a tile
  std::int64_t sums = linear_int4_panel;     // of a row, kept until a tile is done
};

// What each instruction set provides: two ways to compute a call.
//
// `stream` unpacks weights in registers, which few rows want. `panels` unpacks
// the weights of a tile's columns into a panel that many rows share.
struct LinearInt4Kernels {
  // Bytes of all prepared activation rows, or 0 if rows are used as they are.
  std::int64_t (*rows_bytes)(const LinearInt4& call, bool stream);
  LinearPanels (*panel_sizes)(const LinearInt4& call);
  // Fills rows, offsets and magnitudes for activation rows [begin, end).
  Status (*prepare)(const LinearInt4& call, bool stream, std::int64_t begin, std::int64_t end);
  Status (*stream)(const LinearInt4& call, const LinearInt4Tile& tile);
  // Asks for the weights of one of the blocks of columns that `stream` takes in turn, without
  // waiting for them; returns their bytes, or 0 past the last block.
  std::int64_t (*fetch)(const LinearInt4& call, const LinearInt4Tile& tile, std::int64_t block);
  Status (*panels)(const LinearInt4& call, const LinearInt4Tile& tile);
};

}  // namespace tesseral

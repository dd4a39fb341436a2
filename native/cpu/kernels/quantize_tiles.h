// The transform of bfloat16 rows by tiles, where the instruction set has these.
//
// Whatever a tile is loaded from lies in tiles of its own, 16 rows of 64 bytes, but for the rows
// themselves. What the first product gives is rounded and paired on its way to the second. Sizes
// that are not whole tiles are filled up with zeros.
#pragma once

#include "kernels/row_range.h"
#include "simd/amx_tiles.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

// Held while rows are transformed.
using PairUnit = Tiles;

constexpr int64_t tile_floats = int64_t{tile_rows} * lanes;
constexpr int64_t tile_pairs = 2 * lanes;  // elements of a row of a tile

int64_t tiles_down(int64_t rows) { return (rows + tile_rows - 1) / tile_rows; }
int64_t tiles_along(int64_t elements) { return (elements + tile_pairs - 1) / tile_pairs; }

bool takes_pairs(const QuantizeRows& call) {
  return call.element == RowElement::bf16 && call.left_factor != nullptr &&
         call.right % tile_pairs == 0;
}

PairSizes pair_sizes(const QuantizeRows& call) {
  PairSizes sizes;
  sizes.left = tiles_down(call.left) * tiles_along(call.left) * tile_floats;
  sizes.right = call.right_factor == nullptr ? 0 : call.right / 2 * call.right;
  return sizes;
}

// `lanes` elements of row `row` from column `column` on, zeros where the factor ends.
inline Floats factor_lanes(const float* factor, int64_t n, int64_t row, int64_t column) {
  const int64_t left = n - column;
  if (row >= n || left <= 0) return zero();
  const float* p = factor + row * n + column;
  return left >= lanes ? load(p) : load_part(p, static_cast<int>(left));
}

// Pairs (row, row + 1), of rows `row` on and columns `column` on, one row of pairs each.
inline void load_pairs_of(const float* factor, int64_t n, int64_t row, int64_t column,
                          Floats (&pairs)[lanes]) {
  for (int64_t i = 0; i < lanes; ++i) {
    const int64_t at = row + 2 * i;
    pairs[i] =
        pair_lanes(factor_lanes(factor, n, at, column), factor_lanes(factor, n, at + 1, column));
  }
}

inline void store_tile(float* out, const Floats (&rows)[lanes]) {
  for (int64_t i = 0; i < lanes; ++i) store(out + i * lanes, rows[i]);
}

// Tiles of the transposed left factor, row by row, and of the right one, column by column.
Status prepare_pairs(const QuantizeRows& call, float* left_pairs, float* right_pairs) {
  if (!takes_pairs(call)) return Status::invalid;
  Floats pairs[lanes];
  for (int64_t i = 0; i < tiles_down(call.left); ++i) {
    for (int64_t k = 0; k < tiles_along(call.left); ++k, left_pairs += tile_floats) {
      load_pairs_of(call.left_factor, call.left, k * tile_pairs, i * lanes, pairs);
      transpose(pairs);
      store_tile(left_pairs, pairs);
    }
  }
  if (call.right_factor == nullptr) return Status::ok;
  for (int64_t c = 0; c < call.right / lanes; ++c) {
    for (int64_t k = 0; k < call.right / tile_pairs; ++k, right_pairs += tile_floats) {
      load_pairs_of(call.right_factor, call.right, k * tile_pairs, c * lanes, pairs);
      store_tile(right_pairs, pairs);
    }
  }
  return Status::ok;
}

// A column of `steps` tiles as the right side of a product meets rows; registers 0 to 3 get the
// sums of 32 rows and 32 columns, or of the first 16 rows alone.
struct Operand {
  const char* data;  // of the first tile
  int64_t stride;    // bytes from one row of a tile to the next
  int64_t step;      // bytes to the next tile along the sum
  int64_t next;      // bytes to the next 16 rows, or columns
};

template <bool Lower>
inline void tile_products(const Operand& a, const Operand& b, int64_t steps) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (Lower) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t s = 0; s < steps; ++s) {
    const char* rows = a.data + s * a.step;
    const char* columns = b.data + s * b.step;
    _tile_loadd(4, rows, a.stride);
    _tile_loadd(6, columns, b.stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, columns + b.next, b.stride);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (Lower) {
      _tile_loadd(5, rows + a.next, a.stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

inline Operand tiles_of(const float* data, int64_t tiles) {
  constexpr int64_t bytes = tile_floats * int64_t{sizeof(float)};
  return {reinterpret_cast<const char*>(data), tile_bytes, bytes, tiles * bytes};
}

// Two rows of sums of 16 columns to a row of pairs.
inline void pair_sums(const float* sums, int64_t rows, float* out) {
  for (int64_t i = 0; i < rows / 2; ++i) {
    store(out + i * lanes,
          pair_lanes(load(sums + 2 * i * lanes), load(sums + (2 * i + 1) * lanes)));
  }
}

// Fills column `c` and the next of tiles of pairs with X right_factor.
void first_product(const QuantizeRows& call, const char* x, int64_t k, int64_t c, float* middle) {
  alignas(64) float sums[4 * tile_floats];
  const int64_t row_bytes = 2 * call.right;
  const bool lower = tiles_down(call.left) > 2 * k + 1;
  const Operand rows = {x + 2 * k * tile_rows * row_bytes, row_bytes, tile_bytes,
                        tile_rows * row_bytes};
  const int64_t steps = call.right / tile_pairs;
  const Operand columns = tiles_of(call.right_pairs + c * steps * tile_floats, steps);
  lower ? tile_products<true>(rows, columns, steps) : tile_products<false>(rows, columns, steps);
  _tile_stored(0, sums, tile_bytes);
  _tile_stored(1, sums + tile_floats, tile_bytes);
  if (lower) {
    _tile_stored(2, sums + 2 * tile_floats, tile_bytes);
    _tile_stored(3, sums + 3 * tile_floats, tile_bytes);
  }
  const int64_t along = tiles_along(call.left);
  for (int64_t i = 0; i < 2; ++i) {
    float* out = middle + ((c + i) * along + k) * tile_floats;
    pair_sums(sums + i * tile_floats, tile_rows, out);
    out += tile_floats / 2;
    if (lower) {
      pair_sums(sums + (2 + i) * tile_floats, tile_rows, out);
    } else {
      for (int64_t at = 0; at < tile_floats / 2; at += lanes) store(out + at, zero());
    }
  }
}

// The same without a right factor.
void pair_input(const QuantizeRows& call, const uint16_t* x, float* middle) {
  for (int64_t c = 0; c < call.right / lanes; ++c) {
    for (int64_t r = 0; r < tiles_along(call.left) * tile_pairs; r += 2, middle += lanes) {
      const uint16_t* p = x + r * call.right + c * lanes;
      store(middle,
            r < tiles_down(call.left) * tile_rows ? interleave_bf16(p, p + call.right) : zero());
    }
  }
}

// Rows from tile `i` on, of two columns of tiles, of left_factor^T M.
template <bool Lower>
void second_product(const QuantizeRows& call, const float* middle, int64_t i, int64_t c,
                    float* output) {
  const int64_t steps = tiles_along(call.left);
  const Operand rows = tiles_of(call.left_pairs + i * steps * tile_floats, steps);
  const Operand columns = tiles_of(middle + c * steps * tile_floats, steps);
  tile_products<Lower>(rows, columns, steps);
  const int64_t stride = call.right * int64_t{sizeof(float)};
  float* out = output + i * tile_rows * call.right + c * lanes;
  _tile_stored(0, out, stride);
  _tile_stored(1, out + lanes, stride);
  if constexpr (Lower) {
    out += tile_rows * call.right;
    _tile_stored(2, out, stride);
    _tile_stored(3, out + lanes, stride);
  }
}

// Floats that transform_pairs fills before the transformed row, and of that row with what fills
// up its last tiles.
int64_t middle_floats(const QuantizeRows& call) {
  const int64_t copied = call.left % tile_rows == 0 ? 0 : tiles_down(call.left) * tile_rows;
  return tiles_along(call.left) * tile_pairs / 2 * call.right + copied * call.right / 2;
}
int64_t output_floats(const QuantizeRows& call) {
  return tiles_down(call.left) * tile_rows * call.right;
}

// Fills `output` with the transformed row; `middle` is for what comes between.
Range transform_pairs(const QuantizeRows& call, int64_t row, float* middle, float* output) {
  const uint16_t* x = static_cast<const uint16_t*>(call.rows) + row * call.stride;
  const int64_t n = call.left * call.right;
  const int64_t down = tiles_down(call.left);
  const int64_t along = tiles_along(call.left);
  if (call.left % tile_rows != 0) {
    float* copy = middle + along * tile_pairs / 2 * call.right;
    uint16_t* whole = reinterpret_cast<uint16_t*>(copy);
    std::memcpy(whole, x, static_cast<std::size_t>(2 * n));
    std::memset(whole + n, 0, static_cast<std::size_t>(2 * (down * tile_rows * call.right - n)));
    x = whole;
  }
  tiles_read_memory();
  if (call.right_factor == nullptr) {
    pair_input(call, x, middle);
  } else {
    for (int64_t k = 0; k < along; ++k) {
      for (int64_t c = 0; c < call.right / lanes; c += 2) {
        first_product(call, reinterpret_cast<const char*>(x), k, c, middle);
      }
    }
  }
  tiles_read_memory();
  for (int64_t i = 0; i < down; i += 2) {
    for (int64_t c = 0; c < call.right / lanes; c += 2) {
      i + 1 < down ? second_product<true>(call, middle, i, c, output)
                   : second_product<false>(call, middle, i, c, output);
    }
  }
  Bounds bounds;
  for (int64_t i = 0; i < n; i += lanes) bounds.add(load(output + i));
  return bounds.range();
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

// For many activation rows, where the instruction set multiplies tiles of signed bytes.
#pragma once

#include "kernels/linear_int4_unpack.h"
#include "kernels/tile_strips.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

// Codes as signed bytes.
struct Signed {
  static Bytes low(Bytes x) { return signed_low_nibbles(x); }
  static Bytes high(Bytes x) { return signed_high_nibbles(x); }
};

TileSizes tile_sizes(const LinearInt4& call) { return TileSizes(call.k, call.group, 1, chunk); }

LinearPanels panel_sizes(const LinearInt4& call) { return tile_sizes(call).panels(); }
int64_t panel_rows_bytes(const LinearInt4& call) { return tile_sizes(call).rows_bytes(call.m); }

void prepare_panel_row(const LinearInt4& call, int64_t row) {
  const TileSizes sizes = tile_sizes(call);
  const int8_t* source = call.activations + row * call.stride;
  int8_t* out = call.rows + sizes.row_at(row);
  for (int64_t at = 0; at < call.k; at += sizes.depth, out += sizes.step()) {
    if (sizes.depth < vector_bytes) {
      std::memcpy(out, source + at, static_cast<std::size_t>(sizes.depth));
    } else {
      const int64_t left = call.k - at;
      store_bytes(
          out, left >= vector_bytes ? load_bytes(source + at) : load_some_bytes(source + at, left));
    }
  }
}

void unpack_panel(const LinearInt4& call, const LinearInt4Tile& tile, const TileSizes& sizes,
                  const Panel& panel) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  const int64_t count = round_up(tile.column_end - tile.column_begin, block_columns);
  for (int64_t c = 0; c < count; c += strip_columns) {
    unpack_columns<Signed>(call, weight, tile.column_begin + c, tile.column_end - 1,
                           panel.weights + c / strip_columns * sizes.strip, tile_bytes);
  }
  if (call.output != LinearOutput::sums) transpose_scales(weight, tile, sizes, panel.scales);
}

// What the sums of a strip become in the output: row by row, since memory is written fastest so.
// Grouped: whether sums are floats that have their scales.
template <LinearOutput Output, bool Grouped>
void finish_strip(const LinearInt4& call, const LinearInt4Tile& tile, const Panel& panel,
                  const Strip& strip) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  const float* bias = weight.bias == nullptr ? nullptr : weight.bias + tile.column_begin;
  const int64_t columns = tile.column_end - tile.column_begin;
  for (int64_t r = 0; r < strip.rows; ++r) {
    const int64_t at = (strip.row + r) * weight.n + tile.column_begin;
    for (int64_t c = 0; c < columns; c += lanes) {
      const int32_t* p = panel.sums_of(c) + place_of(r, c % block_columns);
      const int64_t count = smaller(lanes, columns - c);
      if constexpr (Output == LinearOutput::sums) {
        write_sums(p, weight.out, at + c, count);
      } else {
        const Floats step = broadcast(call.activation_scale[strip.row + r]);
        Floats x;
        if constexpr (Grouped) {
          x = multiply(load(reinterpret_cast<const float*>(p)), step);
        } else {
          x = multiply(multiply(to_floats(load_ints(p)), step), load(panel.scales + c));
        }
        write_floats(Output, x, bias == nullptr ? nullptr : bias + c, weight.out, at + c,
                     static_cast<int>(count));
      }
    }
  }
}

void finish(const LinearInt4& call, const LinearInt4Tile& tile, const Panel& panel,
            const Strip& strip) {
  const bool grouped = groups_of(call) > 1;
  if (call.output == LinearOutput::sums) {
    finish_strip<LinearOutput::sums, false>(call, tile, panel, strip);
  } else if (call.output == LinearOutput::f32) {
    grouped ? finish_strip<LinearOutput::f32, true>(call, tile, panel, strip)
            : finish_strip<LinearOutput::f32, false>(call, tile, panel, strip);
  } else {
    grouped ? finish_strip<LinearOutput::bf16, true>(call, tile, panel, strip)
            : finish_strip<LinearOutput::bf16, false>(call, tile, panel, strip);
  }
}

void panel_tile(const LinearInt4& call, const LinearInt4Tile& tile) {
  const TileSizes sizes = tile_sizes(call);
  const Panel panel(sizes, tile);
  unpack_panel(call, tile, sizes, panel);
  multiply_tile<SignedBytes>(sizes, panel, tile, call.rows,
                             [&](const Strip& strip) { finish(call, tile, panel, strip); });
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

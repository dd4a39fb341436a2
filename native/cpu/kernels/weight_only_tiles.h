// For many rows of bfloat16, where the instruction set multiplies tiles of them; codes are exact.
#pragma once

#include "kernels/tile_strips.h"
#include "kernels/weight_only_rows.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int64_t pair_bytes = 4;

TileSizes tile_sizes(const WeightOnly& call) {
  return TileSizes(call.k, call.group, pair_bytes / 2, chunk);
}

LinearPanels tile_panels(const WeightOnly& call) { return tile_sizes(call).panels(); }
int64_t tile_rows_floats(const WeightOnly& call) {
  return tile_sizes(call).rows_bytes(call.m) / pair_bytes;
}

void prepare_tile_row(const WeightOnly& call, int64_t row) {
  const TileSizes sizes = tile_sizes(call);
  const int64_t elements = sizes.depth / 2;
  const uint16_t* source = static_cast<const uint16_t*>(call.rows) + row * call.stride;
  char* out = reinterpret_cast<char*>(call.prepared) + sizes.row_at(row);
  for (int64_t at = 0; at < call.k; at += elements, out += sizes.step()) {
    const int64_t bytes = 2 * smaller(elements, call.k - at);
    if (sizes.depth < vector_bytes) {
      std::memcpy(out, source + at, static_cast<std::size_t>(bytes));
    } else {
      store_bytes(out, bytes >= vector_bytes ? load_bytes(source + at)
                                             : load_some_bytes(source + at, bytes));
    }
  }
}

// Pairs of `lanes` columns, eight elements of k for each lane of codes: a row of pairs every
// tile_bytes.
template <int Place>
inline void store_pairs(Ints words, uint8_t* out) {
  store_bytes(out, nibble_pairs<Place>(words));
  if constexpr (Place + 2 < places) store_pairs<Place + 2>(words, out + tile_bytes);
}

// 16 columns from `column` on; past column `last`, that one again.
void unpack_strip(const WeightOnly& call, const LinearInt4Weight& weight, int64_t column,
                  int64_t last, uint8_t* out) {
  const int64_t bytes = packed_bytes(call.k);
  for (int64_t at = 0; at < bytes; at += vector_bytes) {
    Floats words[lanes];
    for (int i = 0; i < lanes; ++i) {
      const uint8_t* p = weight.codes + smaller(column + i, last) * bytes + at;
      words[i] = as_floats(words_at(p, bytes - at));
    }
    transpose(words);
    for (int i = 0; i < lanes; ++i, out += places / 2 * tile_bytes) {
      store_pairs<0>(as_bytes(words[i]), out);
    }
  }
}

void finish(const WeightOnly& call, const LinearInt4Tile& tile, const Panel& panel,
            const Strip& strip) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  const int64_t columns = tile.column_end - tile.column_begin;
  const bool scaled = call.group != call.k;
  for (int64_t r = 0; r < strip.rows; ++r) {
    const int64_t at = (strip.row + r) * weight.n + tile.column_begin;
    for (int64_t c = 0; c < columns; c += lanes) {
      const int n = static_cast<int>(smaller(lanes, columns - c));
      Floats x = ShortFloats::floats(panel.sums_of(c) + place_of(r, c % block_columns));
      if (!scaled) x = multiply(x, load(panel.scales + c));
      if (weight.bias != nullptr) {
        x = add(x, load_some(RowElement::f32, weight.bias, tile.column_begin + c, n));
      }
      store_output(call.output, x, weight.out, at + c, n);
    }
  }
}

void multiply_tiles(const WeightOnly& call, const LinearInt4Tile& tile) {
  const TileSizes sizes = tile_sizes(call);
  const Panel panel(sizes, tile);
  const LinearInt4Weight& weight = call.weights[tile.weight];
  for (int64_t c = 0; c < tile.column_end - tile.column_begin; c += block_columns) {
    for (int64_t i = c; i < c + block_columns; i += strip_columns) {
      unpack_strip(call, weight, tile.column_begin + i, tile.column_end - 1,
                   panel.weights + i / strip_columns * sizes.strip);
    }
  }
  transpose_scales(weight, tile, sizes, panel.scales);
  multiply_tile<ShortFloats>(sizes, panel, tile, reinterpret_cast<const int8_t*>(call.prepared),
                             [&](const Strip& strip) { finish(call, tile, panel, strip); });
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

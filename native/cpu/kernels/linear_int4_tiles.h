// For many activation rows, where the instruction set multiplies tiles: 16 rows of 64 bytes each,
// with 16 columns of as many weights.
//
// A panel holds the weights of up to 256 columns in strips of 16: for every quad of neighbouring
// elements of k, four signed bytes of each column, so that 16 quads are a tile as it is loaded. It
// stays in the L2 cache. 32 rows meet 32 columns of it at a time, in four tiles of sums; where k is
// long, a block of it after the other, so that the rows of a block stay in L1 while all columns
// pass. After the weights come scales, transposed, and tiles of sums that wait.
#pragma once

#include "kernels/linear_int4_unpack.h"
#include "simd/amx_tiles.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr bool panels_need_offsets = false;
constexpr int64_t strip_columns = tile_rows;  // of a panel
constexpr int64_t block_columns = 2 * strip_columns;
constexpr int64_t block_rows = 2 * tile_rows;
constexpr int64_t tile_ints = tile_rows * tile_bytes / 4;
// Measured, not derived.
constexpr int64_t most_columns = 256;
constexpr int64_t most_panel_bytes = 1024 * 1024;
constexpr int64_t most_rows = 4096;       // that share a panel
constexpr int64_t block_elements = 1024;  // of k
static_assert(lanes == strip_columns && chunk % tile_bytes == 0, "vectors fill tiles");

// Signed bytes.
struct Signed {
  static Bytes low(Bytes x) { return signed_low_nibbles(x); }
  static Bytes high(Bytes x) { return signed_high_nibbles(x); }
};

// Bytes of a strip of weights; unpacking writes whole chunks.
int64_t strip_bytes(int64_t k) { return n_chunks(k) * chunk * strip_columns; }

int64_t columns_of(int64_t k) {
  int64_t columns = most_columns;
  while (columns > linear_int4_panel && columns * k > most_panel_bytes) columns /= 2;
  return columns;
}

LinearPanels panel_sizes(const LinearInt4& call) {
  LinearPanels sizes;
  sizes.columns = columns_of(call.k);
  sizes.rows = most_rows;
  sizes.row_step = block_rows;
  const int64_t strips = sizes.columns / strip_columns;
  sizes.bytes = strips * (strip_bytes(call.k) + 2 * tile_ints * int64_t{sizeof(int32_t)}) +
                groups_of(call) * sizes.columns * int64_t{sizeof(float)};
  sizes.sums = 0;
  return sizes;
}

// Rows a multiple of 512 bytes apart would lie in few sets of the L1 cache. A tile reads whole
// steps, which rows with several groups end with.
int64_t panel_row_bytes(const LinearInt4& call) {
  const bool whole = groups_of(call) > 1 || call.k % tile_bytes == 0;
  if (whole && call.stride % 512 != 0) return 0;
  const int64_t bytes = round_up(call.k, tile_bytes);
  return bytes % 512 == 0 ? bytes + tile_bytes : bytes;
}

// Where the parts of a tile's memory lie.
struct Panel {
  uint8_t* weights;
  float* scales;  // [groups, columns]
  int32_t* sums;  // 4 tiles for each pair of strips
  int64_t columns;
  int64_t strip;  // bytes

  Panel(const LinearInt4& call, const LinearInt4Tile& tile)
      : weights(tile.panel), columns(columns_of(call.k)), strip(strip_bytes(call.k)) {
    uint8_t* p = weights + columns / strip_columns * strip;
    sums = reinterpret_cast<int32_t*>(p);
    scales = reinterpret_cast<float*>(p + columns / strip_columns * 2 * tile_ints * 4);
  }

  const uint8_t* pair(int64_t column) const { return weights + column / strip_columns * strip; }
};

void unpack_panel(const LinearInt4& call, const LinearInt4Tile& tile, const Panel& panel) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  const int64_t last = tile.column_end - 1;
  const int64_t count = round_up(tile.column_end - tile.column_begin, block_columns);
  for (int64_t c = 0; c < count; c += strip_columns) {
    unpack_columns<Signed>(call, weight, tile.column_begin + c, last,
                           panel.weights + c / strip_columns * panel.strip, tile_bytes);
  }
  if (call.output == LinearOutput::sums) return;
  transpose_scales(call, weight, tile.column_begin, last, panel.columns, panel.scales);
}

// Up to 32 rows, and bytes of them that a product takes at a time.
struct Rows {
  const int8_t* data;
  int64_t stride;
  int64_t depth;
};

// Registers: 0 to 3 sums, of the first 16 rows and the others; 4 and 5 rows; 6 and 7 columns.
Tiles tiles_for(int64_t rows, int64_t depth) {
  const int upper = static_cast<int>(smaller(rows, tile_rows));
  const int lower = rows > tile_rows ? static_cast<int>(rows) - tile_rows : tile_rows;
  const int bytes = static_cast<int>(depth);
  const TileShape columns = {bytes / 4, tile_bytes};
  return Tiles({upper, tile_bytes}, {upper, tile_bytes}, {lower, tile_bytes}, {lower, tile_bytes},
               {upper, bytes}, {lower, bytes}, columns, columns);
}

inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
inline void load_sums(const int32_t* sums) {
  _tile_loadd(0, sums, tile_bytes);
  _tile_loadd(1, sums + tile_ints, tile_bytes);
  _tile_loadd(2, sums + 2 * tile_ints, tile_bytes);
  _tile_loadd(3, sums + 3 * tile_ints, tile_bytes);
}
template <bool Lower>
inline void store_sums(int32_t* sums) {
  _tile_stored(0, sums, tile_bytes);
  _tile_stored(1, sums + tile_ints, tile_bytes);
  if constexpr (Lower) {
    _tile_stored(2, sums + 2 * tile_ints, tile_bytes);
    _tile_stored(3, sums + 3 * tile_ints, tile_bytes);
  }
}

// Adds the products of `steps` times `depth` elements, from element `begin` on. Lower: whether
// there are more than 16 rows.
template <bool Lower>
inline void multiply_steps(const Rows& rows, const uint8_t* columns, int64_t strip, int64_t begin,
                           int64_t steps) {
  const int8_t* upper = rows.data + begin;
  const int8_t* lower = upper + tile_rows * rows.stride;
  const uint8_t* first = columns + begin * strip_columns;
  const uint8_t* second = first + strip;
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(6, first, tile_bytes);
    _tile_loadd(4, upper, rows.stride);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, second, tile_bytes);
    _tile_dpbssd(1, 4, 7);
    if constexpr (Lower) {
      _tile_loadd(5, lower, rows.stride);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
    upper += rows.depth;
    lower += rows.depth;
    first += rows.depth * strip_columns;
    second += rows.depth * strip_columns;
  }
}

// Sums of up to 32 rows and 32 columns, as four tiles.
struct Place {
  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;
};

inline const int32_t* sums_at(const int32_t* sums, int64_t row, int64_t column) {
  const int64_t tile = 2 * (row / tile_rows) + column / strip_columns;
  return sums + tile * tile_ints + row % tile_rows * strip_columns;
}

// What integers become in the output, or with `grouped` floats that have their scales.
template <bool Grouped>
void finish(const LinearInt4& call, const LinearInt4Weight& weight, const Place& place,
            const float* scales, const int32_t* sums) {
  for (int64_t r = 0; r < place.rows; ++r) {
    const int64_t at = (place.row + r) * weight.n + place.column;
    for (int64_t c = 0; c < place.columns; c += lanes) {
      const int32_t* p = sums_at(sums, r, c);
      const int64_t count = smaller(lanes, place.columns - c);
      if (call.output == LinearOutput::sums) {
        write_sums(p, weight.out, at + c, count);
        continue;
      }
      const Floats step = broadcast(call.activation_scale[place.row + r]);
      Floats x;
      if constexpr (Grouped) {
        x = multiply(load(reinterpret_cast<const float*>(p)), step);
      } else {
        x = multiply(multiply(to_floats(load_ints(p)), step), load(scales + c));
      }
      write_floats(call.output, x,
                   weight.bias == nullptr ? nullptr : weight.bias + place.column + c, weight.out,
                   at + c, static_cast<int>(count));
    }
  }
}

// A strip of rows and all columns, with one scale for each.
template <bool Lower>
void multiply_strip(const LinearInt4& call, const LinearInt4Tile& tile, const Panel& panel,
                    const Rows& rows, int64_t row, int64_t count) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  const int64_t columns = tile.column_end - tile.column_begin;
  const int64_t end = round_up(call.k, tile_bytes);
  for (int64_t begin = 0; begin < end; begin += block_elements) {
    const int64_t steps = smaller(block_elements, end - begin) / tile_bytes;
    for (int64_t c = 0; c < columns; c += block_columns) {
      int32_t* sums = panel.sums + c / block_columns * 4 * tile_ints;
      begin == 0 ? clear_sums() : load_sums(sums);
      multiply_steps<Lower>(rows, panel.pair(c), panel.strip, begin, steps);
      store_sums<Lower>(sums);
      if (begin + block_elements < end) continue;
      const Place place = {row, count, tile.column_begin + c, smaller(block_columns, columns - c)};
      finish<false>(call, weight, place, panel.scales + c, sums);
    }
  }
}

void add_scaled(const int32_t* ints, int64_t rows, const float* scales, bool first, float* sums) {
  for (int64_t c = 0; c < block_columns; c += lanes) {
    const Floats scale = load(scales + c);
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t* p = sums_at(ints, r, c);
      float* sum = sums + (p - ints);
      store(sum, multiply_add(to_floats(load_ints(p)), scale, first ? zero() : load(sum)));
    }
  }
}

// The same with a scale for every group.
template <bool Lower>
void multiply_groups(const LinearInt4& call, const LinearInt4Tile& tile, const Panel& panel,
                     const Rows& rows, int64_t row, int64_t count) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  const int64_t columns = tile.column_end - tile.column_begin;
  float* sums = reinterpret_cast<float*>(panel.sums + 4 * tile_ints);
  for (int64_t c = 0; c < columns; c += block_columns) {
    for (int64_t group = 0; group < groups_of(call); ++group) {
      clear_sums();
      multiply_steps<Lower>(rows, panel.pair(c), panel.strip, group * call.group,
                            call.group / rows.depth);
      store_sums<Lower>(panel.sums);
      add_scaled(panel.sums, count, panel.scales + group * panel.columns + c, group == 0, sums);
    }
    const Place place = {row, count, tile.column_begin + c, smaller(block_columns, columns - c)};
    finish<true>(call, weight, place, nullptr, reinterpret_cast<const int32_t*>(sums));
  }
}

void multiply_rows(const LinearInt4& call, const LinearInt4Tile& tile, const Panel& panel,
                   Rows rows, int64_t row, int64_t count) {
  rows.data += row * rows.stride;
  const bool lower = count > tile_rows;
  if (groups_of(call) == 1) {
    lower ? multiply_strip<true>(call, tile, panel, rows, row, count)
          : multiply_strip<false>(call, tile, panel, rows, row, count);
  } else {
    lower ? multiply_groups<true>(call, tile, panel, rows, row, count)
          : multiply_groups<false>(call, tile, panel, rows, row, count);
  }
}

void panel_tile(const LinearInt4& call, const LinearInt4Tile& tile) {
  const Panel panel(call, tile);
  unpack_panel(call, tile, panel);
  tiles_read_memory();
  const int64_t padded = panel_row_bytes(call);
  const Rows rows = {padded ? call.rows : call.activations, padded ? padded : call.stride,
                     groups_of(call) == 1 ? tile_bytes : smaller(call.group, tile_bytes)};
  const int64_t whole = (tile.row_end - tile.row_begin) / block_rows * block_rows + tile.row_begin;
  if (whole > tile.row_begin) {
    const Tiles tiles = tiles_for(block_rows, rows.depth);
    for (int64_t row = tile.row_begin; row < whole; row += block_rows) {
      multiply_rows(call, tile, panel, rows, row, block_rows);
    }
  }
  if (whole < tile.row_end) {
    const Tiles tiles = tiles_for(tile.row_end - whole, rows.depth);
    multiply_rows(call, tile, panel, rows, whole, tile.row_end - whole);
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

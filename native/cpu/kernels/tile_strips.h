// Products of many rows with a panel of unpacked weights, by tiles: 16 rows of 64 bytes each, with
// 16 columns of as many bytes.
//
// A panel holds columns in strips of 16: for every four neighbouring bytes of k, those of each
// column, so that 16 such rows are a tile as it is loaded. It stays in the L2 cache. 32 rows meet
// 32 columns of it at a time, in four tiles of sums, a block of k after the other: the rows of a
// block stay in L1 while all columns pass, and meanwhile the next come from farther away. So rows
// are prepared as tiles too, in the order in which they are read. After the weights of a panel come
// sums that wait for the next block, and scales, transposed.
#pragma once

#include "simd/amx_tiles.h"
#include "simd/unroll.h"
#include "tesseral/linear_int4.h"
#include TESSERAL_FLOATS
#include TESSERAL_SIMD

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr std::int64_t strip_columns = tile_rows;  // of a panel
constexpr std::int64_t block_columns = 2 * strip_columns;
constexpr std::int64_t block_rows = 2 * tile_rows;
constexpr std::int64_t tile_sums = std::int64_t{tile_rows} * tile_bytes / 4;
constexpr std::int64_t block_sums = 4 * tile_sums;
// Measured, not derived.
constexpr std::int64_t most_columns = 256;
constexpr std::int64_t most_panel_bytes = 1024 * 1024;
constexpr std::int64_t most_rows = 4096;   // that share a panel
constexpr std::int64_t block_bytes = 512;  // of a row
static_assert(lanes == strip_columns, "a vector holds the sums of a row of a tile");

// The products of registers below; intrinsics want their numbers as literals.
// Signed bytes; sums are integers.
struct SignedBytes {
  static void add_upper_first() { _tile_dpbssd(0, 4, 6); }
  static void add_upper_second() { _tile_dpbssd(1, 4, 7); }
  static void add_lower_first() { _tile_dpbssd(2, 5, 6); }
  static void add_lower_second() { _tile_dpbssd(3, 5, 7); }
  static Floats floats(const std::int32_t* sums) { return to_floats(load_ints(sums)); }
};
// Pairs of bfloat16; sums are float32.
struct ShortFloats {
  static void add_upper_first() { _tile_dpbf16ps(0, 4, 6); }
  static void add_upper_second() { _tile_dpbf16ps(1, 4, 7); }
  static void add_lower_first() { _tile_dpbf16ps(2, 5, 6); }
  static void add_lower_second() { _tile_dpbf16ps(3, 5, 7); }
  static Floats floats(const std::int32_t* sums) {
    return load(reinterpret_cast<const float*>(sums));
  }
};

// Sizes of a call, in bytes of the elements as tiles multiply them.
struct TileSizes {
  std::int64_t depth;    // of a row that a product takes
  std::int64_t row;      // whole steps of it
  std::int64_t group;    // that shares a scale
  std::int64_t groups;   // of a row
  std::int64_t strip;    // of 16 columns, as they are unpacked
  std::int64_t columns;  // of a panel; not bytes

  // Rows of k elements of `size` bytes, unpacked in whole chunks of `chunk` elements.
  TileSizes(std::int64_t k, std::int64_t group_elements, std::int64_t size, std::int64_t chunk)
      : group(group_elements * size), groups(k / group_elements), columns(most_columns) {
    depth = groups == 1 || group > tile_bytes ? std::int64_t{tile_bytes} : group;
    row = (k * size + depth - 1) / depth * depth;
    strip = (k + chunk - 1) / chunk * chunk * size * strip_columns;
    while (columns > linear_int4_panel && columns * k * size > most_panel_bytes) columns /= 2;
  }

  LinearPanels panels() const {
    LinearPanels panels;
    panels.columns = columns;
    panels.rows = most_rows;
    panels.row_step = block_rows;
    const std::int64_t sums = columns / block_columns * block_sums + block_sums;
    panels.bytes = columns / strip_columns * strip + 4 * (sums + groups * columns);
    panels.sums = 0;
    return panels;
  }

  // All rows, in strips of 32: for every step a tile of the first 16 rows and one of the others.
  std::int64_t rows_bytes(std::int64_t m) const {
    return (m + block_rows - 1) / block_rows * block_rows * row;
  }
  // Where the first step of a row goes, and how far it is to the next.
  std::int64_t row_at(std::int64_t index) const {
    return index / block_rows * block_rows * row + index % block_rows * depth;
  }
  std::int64_t step() const { return block_rows * depth; }
};

// Where the parts of a tile's memory lie.
struct Panel {
  std::uint8_t* weights;
  std::int32_t* sums;   // block_sums for each two strips of columns
  std::int32_t* group;  // block_sums
  float* scales;        // [groups, columns]

  Panel(const TileSizes& sizes, const LinearInt4Tile& tile) : weights(tile.panel) {
    sums = reinterpret_cast<std::int32_t*>(weights + sizes.columns / strip_columns * sizes.strip);
    group = sums + sizes.columns / block_columns * block_sums;
    scales = reinterpret_cast<float*>(group + block_sums);
  }

  std::int32_t* sums_of(std::int64_t column) const {
    return sums + column / block_columns * block_sums;
  }
};

// scales[g * columns + c] = the scale of group g of column c of a tile, the last again behind it.
void transpose_scales(const LinearInt4Weight& weight, const LinearInt4Tile& tile,
                      const TileSizes& sizes, float* scales) {
  for (std::int64_t c = 0; c < sizes.columns; ++c) {
    const std::int64_t column = tile.column_begin + c;
    const std::int64_t last = tile.column_end - 1;
    const float* scale = weight.scale + (column < last ? column : last) * sizes.groups;
    for (std::int64_t g = 0; g < sizes.groups; ++g) scales[g * sizes.columns + c] = scale[g];
  }
}

// Registers: 0 to 3 sums, of the first 16 rows and the others; 4 and 5 rows; 6 and 7 columns.
Tiles tiles_of(const TileSizes& sizes) {
  const int bytes = static_cast<int>(sizes.depth);
  const TileShape rows = {tile_rows, bytes};
  const TileShape columns = {bytes / 4, tile_bytes};
  return Tiles({}, {}, {}, {}, rows, rows, columns, columns);
}

inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
inline void load_sums(const std::int32_t* sums) {
  _tile_loadd(0, sums, tile_bytes);
  _tile_loadd(1, sums + tile_sums, tile_bytes);
  _tile_loadd(2, sums + 2 * tile_sums, tile_bytes);
  _tile_loadd(3, sums + 3 * tile_sums, tile_bytes);
}
template <bool Lower>
inline void store_sums(std::int32_t* sums) {
  _tile_stored(0, sums, tile_bytes);
  _tile_stored(1, sums + tile_sums, tile_bytes);
  if constexpr (Lower) {
    _tile_stored(2, sums + 2 * tile_sums, tile_bytes);
    _tile_stored(3, sums + 3 * tile_sums, tile_bytes);
  }
}
// Where the sum of a row and a column of 32 lies.
inline std::int64_t place_of(std::int64_t row, std::int64_t column) {
  const std::int64_t tile = 2 * (row / tile_rows) + column / strip_columns;
  return tile * tile_sums + row % tile_rows * strip_columns;
}

// What is multiplied before sums are needed: tiles of rows, and of two strips of columns.
struct Steps {
  const std::int8_t* rows;
  const std::uint8_t* columns;
  std::int64_t strip;
  std::int64_t depth;
  std::int64_t count;
  const std::int8_t* ahead;  // rows to fetch,
  std::int64_t fetched;      // so many bytes with every step

  void advance() {
    rows += block_rows * depth * count;
    columns += strip_columns * depth * count;
    ahead += fetched * count;
  }
};

// Lower: whether there are more than 16 rows.
template <class Elements, bool Lower>
inline void multiply_steps(const Steps& steps) {
  const std::int8_t* rows = steps.rows;
  const std::int8_t* ahead = steps.ahead;
  const std::uint8_t* columns = steps.columns;
  for (std::int64_t step = 0; step < steps.count; ++step) {
    _tile_loadd(6, columns, tile_bytes);
    _tile_loadd(4, rows, steps.depth);
    Elements::add_upper_first();
    for (std::int64_t i = 0; i < steps.fetched; i += 64) __builtin_prefetch(ahead + i, 0, 2);
    _tile_loadd(7, columns + steps.strip, tile_bytes);
    Elements::add_upper_second();
    if constexpr (Lower) {
      _tile_loadd(5, rows + tile_rows * steps.depth, steps.depth);
      Elements::add_lower_first();
      Elements::add_lower_second();
    }
    rows += block_rows * steps.depth;
    columns += strip_columns * steps.depth;
    ahead += steps.fetched;
  }
}

// A strip of prepared rows.
struct Strip {
  const std::int8_t* tiles;
  std::int64_t row;
  std::int64_t rows;
};

// sums += scales * group, for the rows of a strip and 32 columns.
template <class Elements>
void add_scaled(const std::int32_t* group, std::int64_t rows, const float* scales, bool first,
                float* sums) {
  for (std::int64_t c = 0; c < block_columns; c += lanes) {
    const Floats scale = load(scales + c);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t at = place_of(r, c);
      const Floats before = first ? zero() : load(sums + at);
      store(sums + at, multiply_add(Elements::floats(group + at), scale, before));
    }
  }
}

// A block of k for a strip of rows and two strips of columns, from `column` on: all of one group,
// or `count` groups from `group` on, whose sums are floats.
template <class Elements, bool Lower>
void add_block(const TileSizes& sizes, const Panel& panel, const Strip& strip, Steps steps,
               std::int64_t group, std::int64_t count, std::int64_t column) {
  std::int32_t* sums = panel.sums_of(column);
  if (sizes.groups == 1) {
    group == 0 ? clear_sums() : load_sums(sums);
    multiply_steps<Elements, Lower>(steps);
    return store_sums<Lower>(sums);
  }
  for (std::int64_t g = group; g < group + count; ++g) {
    clear_sums();
    multiply_steps<Elements, Lower>(steps);
    store_sums<Lower>(panel.group);
    add_scaled<Elements>(panel.group, strip.rows, panel.scales + g * sizes.columns + column, g == 0,
                         reinterpret_cast<float*>(sums));
    steps.advance();
  }
}

// Fills the sums of a panel with those of a strip of rows and the first `columns` columns.
template <class Elements, bool Lower>
void multiply_strip(const TileSizes& sizes, const Panel& panel, const Strip& strip,
                    std::int64_t columns) {
  const bool grouped = sizes.groups > 1;
  const std::int64_t whole_groups = sizes.group < block_bytes ? block_bytes / sizes.group : 1;
  const std::int64_t block = grouped ? whole_groups * sizes.group : block_bytes;
  // all columns together fetch the next block
  const std::int64_t passes = (columns + block_columns - 1) / block_columns;
  const std::int64_t fetched = (sizes.step() / 64 + passes - 1) / passes * 64;
  for (std::int64_t begin = 0; begin < sizes.row; begin += block) {
    const std::int64_t left = sizes.row - begin;
    const std::int64_t bytes = left < block ? left : block;
    const std::int8_t* rows = strip.tiles + begin * block_rows;
    Steps steps = {rows,        panel.weights + begin * strip_columns,
                   sizes.strip, sizes.depth,
                   0,           rows + bytes * block_rows,
                   fetched};
    steps.count = (grouped ? sizes.group : bytes) / sizes.depth;
    const std::int64_t first = grouped ? begin / sizes.group : begin;
    for (std::int64_t c = 0; c < columns; c += block_columns) {
      add_block<Elements, Lower>(sizes, panel, strip, steps, first, bytes / sizes.group, c);
      steps.columns += 2 * sizes.strip;
      steps.ahead += bytes / sizes.depth * fetched;
    }
  }
}

// Calls finish(strip) for every strip of a tile's rows, when the panel has their sums.
template <class Elements, class Finish>
void multiply_tile(const TileSizes& sizes, const Panel& panel, const LinearInt4Tile& tile,
                   const std::int8_t* prepared, Finish finish) {
  tiles_read_memory();
  const Tiles tiles = tiles_of(sizes);
  const std::int64_t columns = tile.column_end - tile.column_begin;
  for (std::int64_t row = tile.row_begin; row < tile.row_end; row += block_rows) {
    const std::int64_t left = tile.row_end - row;
    const Strip strip = {prepared + sizes.row_at(row), row, left < block_rows ? left : block_rows};
    strip.rows > tile_rows ? multiply_strip<Elements, true>(sizes, panel, strip, columns)
                           : multiply_strip<Elements, false>(sizes, panel, strip, columns);
    finish(strip);
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

// For many activation rows, where the instruction set multiplies tiles: 16 rows of 64 bytes each,
// with 16 columns of as many weights.
//
// A panel holds the weights of up to 256 columns in strips of 16: for every quad of neighbouring
// elements of k, four signed bytes of each column, so that 16 quads are a tile as it is loaded. It
// stays in the L2 cache. 32 rows meet 32 columns of it at a time, in four tiles of sums, a block of
// k after the other: the rows of a block stay in L1 while all columns pass, and meanwhile the next
// come from farther away. So rows are prepared as tiles too, in the order in which they are read.
// After the weights of a panel come sums that wait for the next block, and scales, transposed.
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
constexpr int64_t most_rows = 4096;      // that share a panel
constexpr int64_t block_elements = 512;  // of k: 16 KiB of rows
constexpr int64_t fetched_lines = 4;     // of later rows, with every step
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
                4 * tile_ints * int64_t{sizeof(int32_t)} +
                groups_of(call) * sizes.columns * int64_t{sizeof(float)};
  sizes.sums = 0;
  return sizes;
}

// Elements of k that a product of tiles takes.
int64_t depth_of(const LinearInt4& call) {
  return groups_of(call) == 1 ? tile_bytes : smaller(call.group, tile_bytes);
}

// All rows of a call, in strips of 32: for every step of k a tile of the first 16, one of the
// others.
int64_t panel_rows_bytes(const LinearInt4& call) {
  return round_up(call.m, block_rows) * round_up(call.k, depth_of(call));
}

void prepare_panel_row(const LinearInt4& call, int64_t row) {
  const int64_t depth = depth_of(call);
  const int64_t steps = round_up(call.k, depth) / depth;
  const int8_t* source = call.activations + row * call.stride;
  int8_t* out =
      call.rows + row / block_rows * block_rows * steps * depth + row % block_rows * depth;
  for (int64_t step = 0; step < steps; ++step, out += block_rows * depth) {
    const int64_t left = smaller(depth, call.k - step * depth);
    const int8_t* p = source + step * depth;
    if (depth == vector_bytes) {
      store_bytes(out, left == vector_bytes ? load_bytes(p) : load_some_bytes(p, left));
    } else {
      std::memcpy(out, p, static_cast<std::size_t>(depth));
    }
  }
}

// Where the parts of a tile's memory lie.
struct Panel {
  uint8_t* weights;
  int32_t* sums;   // 4 tiles for each pair of strips
  int32_t* group;  // 4 tiles
  float* scales;   // [groups, columns]
  int64_t columns;
  int64_t strip;  // bytes

  Panel(const LinearInt4& call, const LinearInt4Tile& tile)
      : weights(tile.panel), columns(columns_of(call.k)), strip(strip_bytes(call.k)) {
    const int64_t strips = columns / strip_columns;
    sums = reinterpret_cast<int32_t*>(weights + strips * strip);
    group = sums + 2 * strips * tile_ints;
    scales = reinterpret_cast<float*>(group + 4 * tile_ints);
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

// Registers: 0 to 3 sums, of the first 16 rows and the others; 4 and 5 rows; 6 and 7 columns.
Tiles tiles_of(int64_t depth) {
  const int bytes = static_cast<int>(depth);
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

// What a block of k multiplies: tiles of rows, and of two strips of columns.
struct Steps {
  const int8_t* rows;
  const uint8_t* columns;
  int64_t strip;  // bytes
  int64_t depth;
  int64_t count;
  const int8_t* ahead;  // rows to fetch
};

// Lower: whether there are more than 16 rows.
template <bool Lower>
inline void multiply_steps(const Steps& steps) {
  const int8_t* rows = steps.rows;
  const int8_t* ahead = steps.ahead;
  const uint8_t* columns = steps.columns;
  for (int64_t step = 0; step < steps.count; ++step) {
    _tile_loadd(6, columns, tile_bytes);
    _tile_loadd(4, rows, steps.depth);
    _tile_dpbssd(0, 4, 6);
    TESSERAL_UNROLL
    for (int64_t i = 0; i < fetched_lines; ++i) __builtin_prefetch(ahead + i * 64, 0, 2);
    _tile_loadd(7, columns + steps.strip, tile_bytes);
    _tile_dpbssd(1, 4, 7);
    if constexpr (Lower) {
      _tile_loadd(5, rows + tile_rows * steps.depth, steps.depth);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
    rows += block_rows * steps.depth;
    columns += strip_columns * steps.depth;
    ahead += fetched_lines * 64;
  }
}

// Of sums as four tiles.
inline int64_t place_of(int64_t row, int64_t column) {
  const int64_t tile = 2 * (row / tile_rows) + column / strip_columns;
  return tile * tile_ints + row % tile_rows * strip_columns;
}

void add_scaled(const int32_t* ints, int64_t rows, const float* scales, bool first, float* sums) {
  for (int64_t c = 0; c < block_columns; c += lanes) {
    const Floats scale = load(scales + c);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = place_of(r, c);
      float* sum = sums + at;
      store(sum, multiply_add(to_floats(load_ints(ints + at)), scale, first ? zero() : load(sum)));
    }
  }
}

// A strip of rows.
struct Strip {
  const int8_t* tiles;
  int64_t row;
  int64_t rows;
};

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
      const int32_t* p =
          panel.sums + c / block_columns * 4 * tile_ints + place_of(r, c % block_columns);
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

// Elements [begin, end) of k, of one group, for two strips of columns: into sums that wait.
template <bool Lower>
void add_integers(const Panel& panel, const Steps& steps, bool first, int64_t column) {
  int32_t* sums = panel.sums + column / block_columns * 4 * tile_ints;
  first ? clear_sums() : load_sums(sums);
  multiply_steps<Lower>(steps);
  store_sums<Lower>(sums);
}

// The same for `count` groups, from `group` on.
template <bool Lower>
void add_groups(const Panel& panel, Steps steps, int64_t group, int64_t count, int64_t rows,
                int64_t column) {
  int32_t* sums = panel.sums + column / block_columns * 4 * tile_ints;
  for (int64_t g = group; g < group + count; ++g) {
    clear_sums();
    multiply_steps<Lower>(steps);
    store_sums<Lower>(panel.group);
    add_scaled(panel.group, rows, panel.scales + g * panel.columns + column, g == 0,
               reinterpret_cast<float*>(sums));
    steps.rows += block_rows * steps.depth * steps.count;
    steps.ahead += fetched_lines * 64 * steps.count;
    steps.columns += strip_columns * steps.depth * steps.count;
  }
}

// Groups that a block of k holds, or none where there is only one.
int64_t block_groups(const LinearInt4& call) {
  if (groups_of(call) == 1) return 0;
  return call.group < block_elements ? block_elements / call.group : 1;
}

template <bool Lower>
void multiply_strip(const LinearInt4& call, const LinearInt4Tile& tile, const Panel& panel,
                    const Strip& strip) {
  const int64_t columns = tile.column_end - tile.column_begin;
  const int64_t groups = block_groups(call);
  const int64_t block = groups == 0 ? block_elements : groups * call.group;
  const int64_t depth = depth_of(call);
  const int64_t end = round_up(call.k, depth);
  for (int64_t begin = 0; begin < end; begin += block) {
    const int64_t elements = smaller(block, end - begin);
    const int64_t steps = (groups == 0 ? elements : call.group) / depth;
    const int64_t fetched = elements / depth * fetched_lines * 64;
    for (int64_t c = 0; c < columns; c += block_columns) {
      const int8_t* rows = strip.tiles + begin * block_rows;
      const Steps of = {rows,        panel.pair(c) + begin * strip_columns,
                        panel.strip, depth,
                        steps,       rows + elements * block_rows + c / block_columns * fetched};
      if (groups == 0) {
        add_integers<Lower>(panel, of, begin == 0, c);
      } else {
        add_groups<Lower>(panel, of, begin / call.group, elements / call.group, strip.rows, c);
      }
    }
  }
}

void panel_tile(const LinearInt4& call, const LinearInt4Tile& tile) {
  const Panel panel(call, tile);
  unpack_panel(call, tile, panel);
  tiles_read_memory();
  const int64_t depth = depth_of(call);
  const Tiles tiles = tiles_of(depth);
  for (int64_t row = tile.row_begin; row < tile.row_end; row += block_rows) {
    const Strip strip = {call.rows + row * round_up(call.k, depth), row,
                         smaller(block_rows, tile.row_end - row)};
    strip.rows > tile_rows ? multiply_strip<true>(call, tile, panel, strip)
                           : multiply_strip<false>(call, tile, panel, strip);
    finish(call, tile, panel, strip);
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

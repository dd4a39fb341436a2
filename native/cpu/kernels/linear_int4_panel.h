// For many activation rows: the weights of 64 columns are unpacked once into a
// panel.
//
// A panel holds, for every quad of neighbouring elements of k, four bytes of
// each of 64 columns; a lane of 32 bits then sums one column. A strip of rows
// meets a block of the panel, and strip after strip streams past it; sums wait
// in `tile.sums` for the next block, where k is longer than one. After the
// weights of a panel come its scales, transposed: 64 for each group.
#pragma once

#include "kernels/linear_int4_unpack.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int64_t panel_columns = linear_int4_panel;
constexpr int64_t tile_columns = tile_vectors * lanes;
constexpr int64_t quad_bytes = 4 * tile_columns;  // of a tile, all of whose quads lie together
constexpr int64_t quads_at_once = words_are_ints ? 1 : 4;
constexpr int64_t most_rows = 1024;  // that share a panel, measured
static_assert(panel_columns % tile_columns == 0 && lanes == vector_bytes / 4, "tiles fill panels");

int64_t n_quads(int64_t k) { return (k + 3) / 4; }
// Unpacking writes whole chunks.
int64_t tile_weight_bytes(int64_t k) { return n_chunks(k) * chunk / 4 * quad_bytes; }
int64_t panel_weight_bytes(int64_t k) {
  return panel_columns / tile_columns * tile_weight_bytes(k);
}
LinearPanels panel_sizes(const LinearInt4& call) {
  LinearPanels sizes;
  sizes.rows = most_rows;
  sizes.bytes =
      panel_weight_bytes(call.k) + groups_of(call) * panel_columns * int64_t{sizeof(float)};
  return sizes;
}

// Rows a multiple of 4096 bytes apart would all lie in the same sets of the L1
// cache.
int64_t panel_row_bytes(const LinearInt4& call) {
  if (call.k % 4 == 0 && call.stride % 512 != 0) return 0;
  const int64_t bytes = round_up(call.k, 64);
  return bytes % 512 == 0 ? bytes + 64 : bytes;
}

int64_t panel_rows_bytes(const LinearInt4& call) { return call.m * panel_row_bytes(call); }

void prepare_panel_row(const LinearInt4& call, int64_t row) {
  const int64_t groups = groups_of(call);
  const int64_t bytes = panel_row_bytes(call);
  const int8_t* source = call.activations + row * call.stride;
  note_magnitude(call, row);
  for (int64_t g = 0; g < groups; ++g) {
    call.offsets[row * groups + g] = -weight_offset * sum_of(source + g * call.group, call.group);
  }
  if (bytes == 0) return;
  int8_t* padded = call.rows + row * bytes;
  std::memcpy(padded, source, static_cast<std::size_t>(call.k));
  std::memset(padded + call.k, 0, static_cast<std::size_t>(bytes - call.k));
}

// scales[g * columns + c] = the scale of group g of column `column` + c, likewise.
void transpose_scales(const LinearInt4& call, const LinearInt4Weight& weight, int64_t column,
                      int64_t last, int64_t columns, float* scales) {
  const int64_t groups = groups_of(call);
  for (int64_t c = 0; c < columns; ++c) {
    const float* scale = weight.scale + smaller(column + c, last) * groups;
    for (int64_t g = 0; g < groups; ++g) scales[g * columns + c] = scale[g];
  }
}

void unpack_panel(const LinearInt4& call, const LinearInt4Tile& tile) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  const int64_t last = tile.column_end - 1;
  for (int64_t begin = 0; begin < panel_columns; begin += lanes) {
    uint8_t* out = tile.panel + begin / tile_columns * tile_weight_bytes(call.k);
    unpack_columns<Offset>(call, weight, tile.column_begin + begin, last,
                           out + begin % tile_columns * 4, quad_bytes);
  }
  if (call.output == LinearOutput::sums) return;
  transpose_scales(call, weight, tile.column_begin, last, panel_columns,
                   reinterpret_cast<float*>(tile.panel + panel_weight_bytes(call.k)));
}

// A strip of rows and the columns of a tile.
struct Strip {
  const int8_t* rows;
  int64_t stride;
  const int32_t* magnitudes;
  const int32_t* offsets;
  int64_t groups;
};

// Where the instruction set has no better order.
template <int Vectors>
inline void add_products(Words (&sums)[Vectors], const Bytes (&columns)[Vectors], Bytes row) {
  TESSERAL_UNROLL
  for (int v = 0; v < Vectors; ++v) sums[v] = add_products(sums[v], columns[v], row);
}

// words[r][v] += products of a quad.
template <int Rows>
inline void add_quad(const Strip& strip, const int8_t* rows, const uint8_t* panel, int64_t quad,
                     Words (&words)[Rows][tile_vectors]) {
  Bytes columns[tile_vectors];
  TESSERAL_UNROLL
  for (int v = 0; v < tile_vectors; ++v) {
    columns[v] = load_bytes(panel + quad * quad_bytes + v * vector_bytes);
  }
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const Bytes row = broadcast_quad(rows + r * strip.stride + 4 * quad);
    add_products(words[r], columns, row);
  }
}

// sums[r][v] += products of `quads` quads; rows begin at the first of them.
template <int Rows>
inline void multiply_quads(const Strip& strip, const int8_t* rows, const uint8_t* panel,
                           int64_t quads, Ints (&sums)[Rows][tile_vectors]) {
  const int64_t step = sums_in_16_bits(strip.magnitudes, Rows);
  const int8_t* const ahead = rows + Rows * strip.stride;  // the next strip, which may not be there
  for (int64_t quad = 0; quad < quads;) {
    Words words[Rows][tile_vectors];
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      TESSERAL_UNROLL
      for (int v = 0; v < tile_vectors; ++v) {
        if constexpr (words_are_ints) {
          words[r][v] = sums[r][v];
        } else {
          words[r][v] = zero_words();
        }
      }
    }
    const int64_t stop = smaller(quad + step, quads);
    for (; quads_at_once > 1 && quad + quads_at_once <= stop; quad += quads_at_once) {
      __builtin_prefetch(ahead + quad * 4 * Rows);
      TESSERAL_UNROLL
      for (int64_t i = 0; i < quads_at_once; ++i)
        add_quad<Rows>(strip, rows, panel, quad + i, words);
    }
    for (; quad < stop; ++quad) {
      __builtin_prefetch(ahead + quad * 4 * Rows);
      add_quad<Rows>(strip, rows, panel, quad, words);
    }
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      TESSERAL_UNROLL
      for (int v = 0; v < tile_vectors; ++v) {
        if constexpr (words_are_ints) {
          sums[r][v] = words[r][v];
        } else {
          sums[r][v] = add_widened(sums[r][v], words[r][v]);
        }
      }
    }
  }
}

// Where the sums of a tile wait between blocks of k: integers, or floats where
// there are groups.
template <int Rows>
inline void load_sums(const int32_t* sums, Ints (&ints)[Rows][tile_vectors]) {
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int v = 0; v < tile_vectors; ++v)
      ints[r][v] = load_ints(sums + r * panel_columns + v * lanes);
  }
}
template <int Rows>
inline void store_sums(const Ints (&ints)[Rows][tile_vectors], int32_t* sums) {
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int v = 0; v < tile_vectors; ++v)
      store_ints(sums + r * panel_columns + v * lanes, ints[r][v]);
  }
}
template <int Rows>
inline void add_scaled(const Ints (&ints)[Rows][tile_vectors], const float* scales, float* sums) {
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int v = 0; v < tile_vectors; ++v) {
      float* p = sums + r * panel_columns + v * lanes;
      store(p, multiply_add(to_floats(ints[r][v]), load(scales + v * lanes), load(p)));
    }
  }
}
// Integers begin at the offsets of a group.
template <int Rows>
inline void start_sums(const int32_t* offsets, int64_t groups, Ints (&ints)[Rows][tile_vectors]) {
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int v = 0; v < tile_vectors; ++v) ints[r][v] = broadcast_int(offsets[r * groups]);
  }
}

// Functions of their own, since a compiler keeps the sums in registers only if
// nothing else is in its way.
template <int Rows>
[[gnu::noinline]] void add_integers(const Strip& strip, const int8_t* rows, const uint8_t* panel,
                                    int64_t quads, bool first, int32_t* sums) {
  Ints ints[Rows][tile_vectors];
  if (first) {
    start_sums<Rows>(strip.offsets, 1, ints);
  } else {
    load_sums<Rows>(sums, ints);
  }
  multiply_quads<Rows>(strip, rows, panel, quads, ints);
  store_sums<Rows>(ints, sums);
}
template <int Rows>
[[gnu::noinline]] void add_group(const Strip& strip, const int8_t* rows, const uint8_t* panel,
                                 int64_t quads, int64_t group, const float* scales, float* sums) {
  Ints ints[Rows][tile_vectors];
  start_sums<Rows>(strip.offsets + group, strip.groups, ints);
  multiply_quads<Rows>(strip, rows, panel, quads, ints);
  add_scaled<Rows>(ints, scales + group * panel_columns, sums);
}

// What elements [begin, end) of k add to a tile of sums whose columns begin at
// `column`; those from 0 on overwrite what was there.
template <int Rows>
void add_block(const LinearInt4& call, const Strip& strip, const uint8_t* panel, int64_t column,
               int64_t begin, int64_t end, int32_t* sums) {
  const uint8_t* columns = panel + column / tile_columns * tile_weight_bytes(call.k);
  if (strip.groups == 1) {
    return add_integers<Rows>(strip, strip.rows + begin, columns + n_quads(begin) * quad_bytes,
                              n_quads(end - begin), begin == 0, sums);
  }
  const float* scales = reinterpret_cast<const float*>(panel + panel_weight_bytes(call.k)) + column;
  float* floats = reinterpret_cast<float*>(sums);
  for (int r = 0; begin == 0 && r < Rows; ++r) {
    for (int64_t c = 0; c < tile_columns; ++c) floats[r * panel_columns + c] = 0.0f;
  }
  int64_t group = begin / call.group;
  for (int64_t k = begin; k < end; k += call.group, ++group) {
    add_group<Rows>(strip, strip.rows + k, columns + n_quads(k) * quad_bytes, n_quads(call.group),
                    group, scales, floats);
  }
}

// Of one row: what its sums become in the output.
void finish_row(const LinearInt4& call, const LinearInt4Weight& weight, const uint8_t* panel,
                int64_t row, int64_t column, int64_t count, const int32_t* sums) {
  const int64_t at = row * weight.n + column;
  if (call.output == LinearOutput::sums) return write_sums(sums, weight.out, at, count);
  const float* scales = reinterpret_cast<const float*>(panel + panel_weight_bytes(call.k));
  const Floats activation_scale = broadcast(call.activation_scale[row]);
  const bool grouped = groups_of(call) > 1;
  for (int64_t c = 0; c < count; c += lanes) {
    Floats x;
    if (grouped) {
      x = multiply(load(reinterpret_cast<const float*>(sums + c)), activation_scale);
    } else {
      x = multiply(multiply(to_floats(load_ints(sums + c)), activation_scale), load(scales + c));
    }
    write_floats(call.output, x, weight.bias == nullptr ? nullptr : weight.bias + column + c,
                 weight.out, at + c, static_cast<int>(smaller(lanes, count - c)));
  }
}

template <int Rows>
void panel_strip(const LinearInt4& call, const LinearInt4Tile& tile, int64_t row, int64_t begin,
                 int64_t end) {
  const bool padded = call.rows != nullptr;
  const int64_t stride = padded ? panel_row_bytes(call) : call.stride;
  const int8_t* rows = (padded ? call.rows : call.activations) + row * stride;
  const int64_t groups = groups_of(call);
  const Strip strip = {rows, stride, call.magnitudes + row, call.offsets + row * groups, groups};
  int32_t* sums = tile.sums + (row - tile.row_begin) * panel_columns;
  for (int64_t column = 0; column < tile.column_end - tile.column_begin; column += tile_columns) {
    add_block<Rows>(call, strip, tile.panel, column, begin, end, sums + column);
  }
  if (end < call.k) return;
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    finish_row(call, call.weights[tile.weight], tile.panel, row + r, tile.column_begin,
               tile.column_end - tile.column_begin, sums + r * panel_columns);
  }
}

using StripFunction = void (*)(const LinearInt4&, const LinearInt4Tile&, int64_t, int64_t, int64_t);

template <int Rows>
StripFunction strip_of(int64_t rows) {
  if constexpr (Rows == 1) {
    return panel_strip<1>;
  } else {
    return rows >= Rows ? panel_strip<Rows> : strip_of<Rows - 1>(rows);
  }
}

void panel_tile(const LinearInt4& call, const LinearInt4Tile& tile) {
  unpack_panel(call, tile);
  const int64_t groups_of_a_block = panel_block / call.group;
  const int64_t step = groups_of(call) == 1    ? panel_block
                       : groups_of_a_block < 1 ? call.group
                                               : groups_of_a_block * call.group;
  for (int64_t begin = 0; begin < call.k; begin += step) {
    const int64_t end = smaller(begin + step, call.k);
    for (int64_t row = tile.row_begin; row < tile.row_end;) {
      const int64_t left = tile.row_end - row;
      strip_of<panel_rows>(left)(call, tile, row, begin, end);
      row += smaller(left, panel_rows);
    }
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

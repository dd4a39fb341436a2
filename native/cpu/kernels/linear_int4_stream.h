// For few activation rows: weights are read once, as they are stored, and
// unpacked in registers.
//
// A vector of packed weights yields its low nibbles (even elements) and its
// high nibbles (odd elements). Instead of interleaving them, `prepare` splits
// each activation row the same way. A prepared row is a vector of lanes with
// the offsets of the whole row, and then for each chunk of elements a vector of
// even ones, one of odd ones, and one of lanes with the chunk's offsets; lane
// i has those of elements [8 i, 8 i + 8), which meet in that lane.
#pragma once

#include "kernels/linear_int4_rows.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int column_block = 4;
// With AVX-512 (Zen 4, Zen 5), memory gives about twice as much to one stream of addresses as to
// four in turns: weights are fetched in the order in which they lie, so many bytes ahead or a block
// of columns ahead. Without (Zen 3), it gives 40 GB/s to four places far apart and 23 to one: the
// columns of a block are a quarter of a task apart. Into L2: with a few rows of activations, L1 is
// full.
constexpr bool spread_out = vector_bytes < 64;
constexpr int64_t ahead_bytes = spread_out ? 512 : 4096;

// The columns of a block: so many, so far apart.
struct Columns {
  int64_t first;
  int64_t step;
  int count;

  int64_t at(int c) const { return first + c * step; }
};

int64_t stream_row_bytes(int64_t k) { return round_up((1 + 3 * n_chunks(k)) * vector_bytes, 64); }

void prepare_streamed(const LinearInt4& call, int64_t index) {
  const int64_t k = call.k;
  const int8_t* row = call.activations + index * call.stride;
  int8_t* prepared = call.rows + index * stream_row_bytes(k);
  note_magnitude(call, index);
  constexpr int64_t n_lanes = vector_bytes / 4;
  alignas(64) int32_t totals[n_lanes] = {};
  for (int64_t begin = 0; begin < k; begin += chunk) {
    alignas(64) int8_t padded[chunk] = {};
    const int64_t count = smaller(chunk, k - begin);
    const int8_t* source = row + begin;
    if (count < chunk) {
      for (int64_t i = 0; i < count; ++i) padded[i] = source[i];
      source = padded;
    }
    int8_t* even = prepared + vector_bytes + begin / chunk * 3 * vector_bytes;
    int8_t* odd = even + vector_bytes;
    for (int64_t i = 0; i < vector_bytes; ++i) {
      even[i] = source[2 * i];
      odd[i] = source[2 * i + 1];
    }
    alignas(64) int32_t offsets[n_lanes];
    for (int64_t lane = 0; lane < n_lanes; ++lane) {
      offsets[lane] = -weight_offset * sum_of(source + lane_elements * lane, lane_elements);
      totals[lane] += offsets[lane];
    }
    std::memcpy(odd + vector_bytes, offsets, vector_bytes);
  }
  std::memcpy(prepared, totals, vector_bytes);
}

// Four rows of weights; past the last one, the last again.
struct WeightRows {
  const uint8_t* codes[column_block];
  const float* scale[column_block];
  int64_t bytes;

  WeightRows(const LinearInt4& call, const LinearInt4Weight& weight, const Columns& columns)
      : bytes(packed_bytes(call.k)) {
    TESSERAL_UNROLL
    for (int c = 0; c < column_block; ++c) {
      const int64_t at = columns.at(static_cast<int>(smaller(c, columns.count - 1)));
      codes[c] = weight.codes + at * bytes;
      scale[c] = weight.scale + at * groups_of(call);
    }
  }

  void load_pair(int c, int64_t index, Bytes& low, Bytes& high) const {
    const int64_t begin = index * vector_bytes;
    const uint8_t* p = codes[c] + begin;
    const Bytes x =
        bytes - begin >= vector_bytes ? load_bytes(p) : load_some_bytes(p, bytes - begin);
    low = low_nibbles(x);
    high = high_nibbles(x);
  }

  // Fetches a vector of the next block; all c of all indices fetch the block in order.
  void fetch_block(int c, int64_t index) const {
    if (spread_out) return fetch_ahead(c, index);
    __builtin_prefetch(codes[0] + column_block * bytes + (column_block * index + c) * vector_bytes,
                       0, 2);
  }
  void fetch_ahead(int c, int64_t index) const {
    __builtin_prefetch(codes[c] + index * vector_bytes + ahead_bytes, 0, 2);
  }
};

inline const int8_t* chunk_of(const int8_t* prepared, int64_t index) {
  return prepared + (1 + 3 * index) * vector_bytes;
}
inline Ints ints_at(const int8_t* p) { return load_ints(reinterpret_cast<const int32_t*>(p)); }

// words[r][c] += products of a chunk.
template <int Rows>
inline void add_chunk(const int8_t* const (&rows)[Rows], const WeightRows& weights, int64_t index,
                      Words (&words)[Rows][column_block]) {
  TESSERAL_UNROLL
  for (int c = 0; c < column_block; ++c) {
    Bytes low;
    Bytes high;
    weights.fetch_block(c, index);
    weights.load_pair(c, index, low, high);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const int8_t* p = chunk_of(rows[r], index);
      words[r][c] = add_products(add_products(words[r][c], low, load_bytes(p)), high,
                                 load_bytes(p + vector_bytes));
    }
  }
}

// words[c] += products of chunks [begin, end) with one row, column after column.
[[maybe_unused]] inline void add_columns(const int8_t* row, const WeightRows& weights,
                                         int64_t begin, int64_t end, Words (&words)[column_block]) {
  for (int c = 0; c < column_block; ++c) {
    Words even = words[c];
    Words odd = zero_words();
    for (int64_t index = begin; index < end; ++index) {
      Bytes low;
      Bytes high;
      weights.fetch_ahead(c, index);
      weights.load_pair(c, index, low, high);
      const int8_t* p = chunk_of(row, index);
      even = add_products(even, low, load_bytes(p));
      odd = add_products(odd, high, load_bytes(p + vector_bytes));
    }
    words[c] = add_words(even, odd);
  }
}

template <int Rows>
void stream_sums(const LinearInt4& call, const WeightRows& weights,
                 const int8_t* const (&rows)[Rows], int64_t row,
                 int32_t (&totals)[Rows][column_block]) {
  const int64_t end = n_chunks(call.k);
  const int64_t step = sums_in_16_bits(call.magnitudes + row, Rows) / 2;
  Ints sums[Rows][column_block];
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    sums[r][0] = ints_at(rows[r]);
    TESSERAL_UNROLL
    for (int c = 1; c < column_block; ++c) sums[r][c] = sums[r][0];
  }
  for (int64_t index = 0; index < end;) {
    Words words[Rows][column_block];
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      TESSERAL_UNROLL
      for (int c = 0; c < column_block; ++c) words[r][c] = zero_words();
    }
    const int64_t stop = smaller(index + step, end);
    if constexpr (Rows == 1 && !spread_out) {
      add_columns(rows[0], weights, index, stop, words[0]);
      index = stop;
    }
    for (; index < stop; ++index) add_chunk<Rows>(rows, weights, index, words);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      TESSERAL_UNROLL
      for (int c = 0; c < column_block; ++c) sums[r][c] = add_widened(sums[r][c], words[r][c]);
    }
  }
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) reduce4(sums[r], totals[r]);
}

// The scales of a chunk's lanes.
inline Floats chunk_scales(const float* scale, int64_t index, int64_t k, int64_t group) {
  const int64_t first = index * chunk / group;
  if (group >= chunk) return broadcast(scale[first]);
  int width_log2 = 0;
  while ((lane_elements << width_log2) < group) ++width_log2;
  return spread(scale + first, static_cast<int>(smaller(chunk / group, k / group - first)),
                width_log2);
}

template <int Rows>
void stream_groups(const LinearInt4& call, const WeightRows& weights,
                   const int8_t* const (&rows)[Rows], float (&totals)[Rows][column_block]) {
  Floats sums[Rows][column_block];
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int c = 0; c < column_block; ++c) sums[r][c] = zero();
  }
  for (int64_t index = 0; index < n_chunks(call.k); ++index) {
    Words words[Rows][column_block];
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      TESSERAL_UNROLL
      for (int c = 0; c < column_block; ++c) words[r][c] = zero_words();
    }
    add_chunk<Rows>(rows, weights, index, words);
    TESSERAL_UNROLL
    for (int c = 0; c < column_block; ++c) {
      const Floats scale = chunk_scales(weights.scale[c], index, call.k, call.group);
      TESSERAL_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const Ints offsets = ints_at(chunk_of(rows[r], index) + 2 * vector_bytes);
        const Floats products = to_floats(add_widened(offsets, words[r][c]));
        sums[r][c] = multiply_add(products, scale, sums[r][c]);
      }
    }
  }
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int c = 0; c < column_block; ++c) totals[r][c] = sum_lanes(sums[r][c]);
  }
}

// out[row : row + Rows, columns].
template <int Rows>
void stream_block(const LinearInt4& call, const LinearInt4Weight& weight, int64_t row,
                  const Columns& columns) {
  const int count = columns.count;
  const int64_t stride = stream_row_bytes(call.k);
  const int8_t* rows[Rows];
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) rows[r] = call.rows + (row + r) * stride;
  const WeightRows weights(call, weight, columns);
  float scaled[Rows][column_block];
  if (groups_of(call) > 1) {
    stream_groups<Rows>(call, weights, rows, scaled);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      for (int c = 0; c < count; ++c) scaled[r][c] *= call.activation_scale[row + r];
    }
  } else {
    int32_t totals[Rows][column_block];
    stream_sums<Rows>(call, weights, rows, row, totals);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      if (call.output == LinearOutput::sums) {
        for (int c = 0; c < count; ++c) {
          write_sums(totals[r] + c, weight.out, (row + r) * weight.n + columns.at(c), 1);
        }
        continue;
      }
      for (int c = 0; c < count; ++c) {
        const float value = static_cast<float>(totals[r][c]) * call.activation_scale[row + r];
        scaled[r][c] = value * weights.scale[c][0];
      }
    }
  }
  if (call.output == LinearOutput::sums) return;
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const auto write = [&](int c, int some) {
      const int64_t column = columns.at(c);
      write_floats(call.output, load_part(scaled[r] + c, some),
                   weight.bias == nullptr ? nullptr : weight.bias + column, weight.out,
                   (row + r) * weight.n + column, some);
    };
    if (columns.step == 1) {
      write(0, count);
    } else {
      for (int c = 0; c < count; ++c) write(c, 1);
    }
  }
}

using StreamFunction = void (*)(const LinearInt4&, const LinearInt4Weight&, int64_t,
                                const Columns&);

template <int Rows>
StreamFunction stream_of(int64_t rows) {
  if constexpr (Rows == 1) {
    return stream_block<1>;
  } else {
    return rows >= Rows ? stream_block<Rows> : stream_of<Rows - 1>(rows);
  }
}

// A block of a tile's columns; of none past the last.
Columns block_of(const LinearInt4Tile& tile, int64_t index) {
  const int64_t width = tile.column_end - tile.column_begin;
  const int64_t step = spread_out ? width / column_block : 0;
  if (index < step) return {tile.column_begin + index, step, column_block};
  const int64_t column = tile.column_begin + index * column_block;
  const int64_t left = tile.column_end - column;
  return {column, 1, static_cast<int>(left < 0 ? 0 : smaller(column_block, left))};
}

void stream_tile(const LinearInt4& call, const LinearInt4Tile& tile) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  for (int64_t index = 0;; ++index) {
    const Columns columns = block_of(tile, index);
    if (columns.count == 0) return;
    for (int64_t row = tile.row_begin; row < tile.row_end; row += stream_rows) {
      stream_of<stream_rows>(tile.row_end - row)(call, weight, row, columns);
    }
  }
}

int64_t fetch_weights(const LinearInt4& call, const LinearInt4Tile& tile, int64_t index) {
  constexpr int64_t line = 64;
  const LinearInt4Weight& weight = call.weights[tile.weight];
  const Columns columns = block_of(tile, index);
  const int64_t bytes = packed_bytes(call.k);
  // neighbours are one stretch, and others are read in turns
  const bool together = columns.step == 1;
  const int places = together ? 1 : columns.count;
  const int64_t stretch = together ? columns.count * bytes : bytes;
  for (int64_t at = 0; at < stretch; at += line) {
    for (int c = 0; c < places; ++c) {
      __builtin_prefetch(weight.codes + columns.at(c) * bytes + at, 0, 2);
    }
  }
  return columns.count * bytes;
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

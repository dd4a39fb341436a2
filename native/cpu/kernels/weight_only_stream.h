// For few rows: weights are read once, as they are stored, and unpacked in registers.
#pragma once

#include "kernels/weight_only_rows.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int64_t ahead_bytes = 4096;  // weights are one stream of addresses, fetched so far ahead

int64_t stream_row_floats(const WeightOnly& call) { return n_chunks(call.k) * chunk; }

void prepare_streamed(const WeightOnly& call, int64_t row) {
  float* prepared = call.prepared + row * stream_row_floats(call);
  alignas(64) float values[chunk];
  for (int64_t begin = 0; begin < call.k; begin += chunk) {
    load_chunk(call, row, begin, values);
    for (int64_t j = 0; j < places; ++j) {
      for (int64_t i = 0; i < lanes; ++i) prepared[begin + j * lanes + i] = values[places * i + j];
    }
  }
}

// sums[r][place % Parts] += products of a chunk, from place `Place` on.
template <int Place, int Rows, int Parts>
inline void add_places(Ints words, const float* const (&rows)[Rows], Floats (&sums)[Rows][Parts]) {
  const Floats codes = nibble_floats<Place>(words);
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    Floats& sum = sums[r][Place % Parts];
    sum = multiply_add(codes, load(rows[r] + Place * lanes), sum);
  }
  if constexpr (Place + 1 < places) add_places<Place + 1>(words, rows, sums);
}

template <int Parts>
inline Floats joined(const Floats (&sums)[Parts]) {
  Floats total = sums[0];
  TESSERAL_UNROLL
  for (int p = 1; p < Parts; ++p) total = add(total, sums[p]);
  return total;
}

// The scales of a chunk's lanes, each of which has eight neighbours.
inline Floats chunk_scales(const float* scale, int64_t index, int64_t k, int64_t group) {
  const int64_t first = index * chunk / group;
  if (group >= chunk) return broadcast(scale[first]);
  int width_log2 = 0;
  while ((int64_t{places} << width_log2) < group) ++width_log2;
  return spread(scale + first, static_cast<int>(smaller(chunk / group, k / group - first)),
                width_log2);
}

template <int Rows>
void stream_column(const WeightOnly& call, const LinearInt4Weight& weight, int64_t row,
                   int64_t column) {
  constexpr int parts = Rows == 1 ? 4 : 2;  // sums that wait for one another are slow
  const int64_t bytes = packed_bytes(call.k);
  const uint8_t* codes = weight.codes + column * bytes;
  const float* scale = weight.scale + column * (call.k / call.group);
  const int64_t stride = stream_row_floats(call);
  const bool grouped = call.group != call.k;
  Floats sums[Rows][parts];
  Floats totals[Rows];
  clear(sums);
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) totals[r] = zero();
  for (int64_t index = 0; index < n_chunks(call.k); ++index) {
    const float* rows[Rows];
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) rows[r] = call.prepared + (row + r) * stride + index * chunk;
    const uint8_t* p = codes + index * vector_bytes;
    __builtin_prefetch(p + ahead_bytes, 0, 2);
    add_places<0>(words_at(p, bytes - index * vector_bytes), rows, sums);
    if (!grouped) continue;
    const Floats scales = chunk_scales(scale, index, call.k, call.group);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) totals[r] = multiply_add(joined(sums[r]), scales, totals[r]);
    clear(sums);
  }
  const float bias = weight.bias == nullptr ? 0.0f : weight.bias[column];
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const float sum = grouped ? sum_lanes(totals[r]) : sum_lanes(joined(sums[r])) * scale[0];
    store_output(call.output, broadcast(sum + bias), weight.out, (row + r) * weight.n + column, 1);
  }
}

using StreamFunction = void (*)(const WeightOnly&, const LinearInt4Weight&, int64_t, int64_t);

template <int Rows>
StreamFunction stream_of(int64_t rows) {
  if constexpr (Rows == 1) {
    return stream_column<1>;
  } else {
    return rows >= Rows ? stream_column<Rows> : stream_of<Rows - 1>(rows);
  }
}

void stream_tile(const WeightOnly& call, const LinearInt4Tile& tile) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  for (int64_t column = tile.column_begin; column < tile.column_end; ++column) {
    for (int64_t row = tile.row_begin; row < tile.row_end; row += stream_rows) {
      stream_of<stream_rows>(tile.row_end - row)(call, weight, row, column);
    }
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

// For many rows: the weights of 64 columns are unpacked into a panel that they share, as float32 or
// as pairs of bfloat16.
#pragma once

#include "kernels/weight_only_rows.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int64_t panel_columns = linear_int4_panel;
constexpr int64_t tile_columns = tile_vectors * lanes;
constexpr int64_t block_steps = 1024;     // of a panel: 256 KiB
constexpr int64_t most_panel_rows = 256;  // measured: their sums are 64 KiB
static_assert(panel_columns % tile_columns == 0, "tiles fill panels");

// Elements of a row that a step of a panel takes.
int64_t step_elements(const WeightOnly& call) { return call.pairs ? 2 : 1; }

int64_t panel_row_floats(const WeightOnly& call) {
  const int64_t elements = n_chunks(call.k) * chunk;
  const int64_t floats = elements / step_elements(call);
  // rows a multiple of 4096 bytes apart would all lie in the same sets of the L1 cache
  return floats % 128 == 0 ? floats + 16 : floats;
}

LinearPanels panel_sizes_of(const WeightOnly& call) {
  const int64_t steps = smaller(block_steps, n_chunks(call.k) * chunk / step_elements(call));
  LinearPanels sizes;
  sizes.rows = most_panel_rows;
  sizes.bytes = steps * panel_columns * int64_t{sizeof(float)};
  return sizes;
}

// As float32, or as pairs of bfloat16 in the order of the row.
void prepare_panel_row(const WeightOnly& call, int64_t row) {
  float* prepared = call.prepared + row * panel_row_floats(call);
  alignas(64) float values[chunk];
  const int64_t step = step_elements(call);
  for (int64_t begin = 0; begin < call.k; begin += chunk) {
    load_chunk(call, row, begin, call.pairs ? values : prepared + begin);
    if (!call.pairs) continue;
    uint16_t* out = reinterpret_cast<uint16_t*>(prepared + begin / step);
    for (int64_t i = 0; i < chunk; i += lanes) store_bf16(out + i, load(values + i));
  }
}

// Steps of eight elements of `lanes` columns: panel_columns numbers, or pairs of them, each.
template <int Place, bool Pairs>
inline void store_places(Ints words, float* out) {
  if constexpr (Pairs) {
#if defined(TESSERAL_BF16_DOT)
    store(out, pair_lanes(nibble_floats<Place>(words), nibble_floats<Place + 1>(words)));
#endif
    if constexpr (Place + 2 < places) store_places<Place + 2, true>(words, out + panel_columns);
  } else {
    store(out, nibble_floats<Place>(words));
    if constexpr (Place + 1 < places) store_places<Place + 1, false>(words, out + panel_columns);
  }
}

// Columns [column, column + count) of elements [begin, end), the last column again behind them.
template <bool Pairs>
void unpack_panel(const WeightOnly& call, const LinearInt4Weight& weight, int64_t column,
                  int64_t count, int64_t begin, int64_t end, float* panel) {
  constexpr int64_t steps_of_lane = Pairs ? places / 2 : places;
  const int64_t bytes = packed_bytes(call.k);
  for (int64_t first = 0; first < panel_columns; first += lanes) {
    float* out = panel + first;
    for (int64_t at = begin / 2; at < (end + 1) / 2; at += vector_bytes) {
      Floats words[lanes];
      for (int i = 0; i < lanes; ++i) {
        const int64_t of = column + smaller(first + i, count - 1);
        const uint8_t* p = weight.codes + of * bytes + at;
        words[i] =
            as_floats(bytes - at >= vector_bytes ? load_bytes(p) : load_some_bytes(p, bytes - at));
      }
      transpose(words);
      for (int i = 0; i < lanes; ++i) {
        store_places<0, Pairs>(as_ints(as_bytes(words[i])), out);
        out += steps_of_lane * panel_columns;
      }
    }
  }
}

// A rectangle of rows and of a tile's columns.
struct Span {
  const float* rows;
  int64_t stride;
  const float* panel;
  int64_t steps;
  const float* scales;  // of the columns
  float* sums;          // [rows, panel_columns]
  bool first;           // whether sums begin here
};

template <bool Pairs>
inline Floats add_step(Floats sum, Floats row, Floats column) {
#if defined(TESSERAL_BF16_DOT)
  if constexpr (Pairs) return add_pair_products(sum, row, column);
#endif
  return multiply_add(row, column, sum);
}

// A function of its own, since a compiler keeps the sums in registers only if nothing else is in
// its way.
template <int Rows, bool Pairs>
[[gnu::noinline]] void add_span(const Span& span) {
  Floats sums[Rows][tile_vectors];
  clear(sums);
  for (int64_t step = 0; step < span.steps; ++step) {
    Floats columns[tile_vectors];
    TESSERAL_UNROLL
    for (int v = 0; v < tile_vectors; ++v) {
      columns[v] = load(span.panel + step * panel_columns + v * lanes);
    }
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Floats row = broadcast(span.rows[r * span.stride + step]);
      TESSERAL_UNROLL
      for (int v = 0; v < tile_vectors; ++v) {
        sums[r][v] = add_step<Pairs>(sums[r][v], row, columns[v]);
      }
    }
  }
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int v = 0; v < tile_vectors; ++v) {
      float* p = span.sums + r * panel_columns + v * lanes;
      const Floats before = span.first ? zero() : load(p);
      store(p, multiply_add(sums[r][v], load(span.scales + v * lanes), before));
    }
  }
}

using SpanFunction = void (*)(const Span&);

template <int Rows, bool Pairs>
SpanFunction span_of(int64_t rows) {
  if constexpr (Rows == 1) {
    return add_span<1, Pairs>;
  } else {
    return rows >= Rows ? add_span<Rows, Pairs> : span_of<Rows - 1, Pairs>(rows);
  }
}

// Adds to the sums of a tile what elements [begin, end) of one group give, whose panel begins at
// element `block`.
template <bool Pairs>
void add_group(const WeightOnly& call, const LinearInt4Tile& tile, int64_t block, int64_t begin,
               int64_t end) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  const int64_t step = Pairs ? 2 : 1;
  const int64_t count = tile.column_end - tile.column_begin;
  alignas(64) float scales[panel_columns];
  for (int64_t c = 0; c < panel_columns; ++c) {
    const int64_t column = tile.column_begin + smaller(c, count - 1);
    scales[c] = weight.scale[column * (call.k / call.group) + begin / call.group];
  }
  const int64_t stride = panel_row_floats(call);
  const float* panel = reinterpret_cast<const float*>(tile.panel);
  Span span;
  span.stride = stride;
  span.steps = (end - begin + step - 1) / step;
  span.first = begin == 0;
  for (int64_t row = tile.row_begin; row < tile.row_end; row += panel_rows) {
    for (int64_t column = 0; column < count; column += tile_columns) {
      span.rows = call.prepared + row * stride + begin / step;
      span.panel = panel + (begin - block) / step * panel_columns + column;
      span.scales = scales + column;
      span.sums =
          reinterpret_cast<float*>(tile.sums) + (row - tile.row_begin) * panel_columns + column;
      span_of<panel_rows, Pairs>(tile.row_end - row)(span);
    }
  }
}

template <bool Pairs>
void panel_tile(const WeightOnly& call, const LinearInt4Tile& tile) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  const int64_t block = block_steps * (Pairs ? 2 : 1);
  for (int64_t begin = 0; begin < call.k; begin += block) {
    const int64_t end = smaller(begin + block, call.k);
    unpack_panel<Pairs>(call, weight, tile.column_begin, tile.column_end - tile.column_begin, begin,
                        end, reinterpret_cast<float*>(tile.panel));
    for (int64_t at = begin; at < end;) {
      const int64_t stop = smaller((at / call.group + 1) * call.group, end);
      add_group<Pairs>(call, tile, begin, at, stop);
      at = stop;
    }
  }
}

void write_tile(const WeightOnly& call, const LinearInt4Tile& tile) {
  const LinearInt4Weight& weight = call.weights[tile.weight];
  const int64_t count = tile.column_end - tile.column_begin;
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
    const float* sums =
        reinterpret_cast<const float*>(tile.sums) + (row - tile.row_begin) * panel_columns;
    for (int64_t c = 0; c < count; c += lanes) {
      const int64_t column = tile.column_begin + c;
      const int n = static_cast<int>(smaller(lanes, count - c));
      Floats x = load(sums + c);
      if (weight.bias != nullptr) {
        x = add(x, load_some(RowElement::f32, weight.bias, column, n));
      }
      store_output(call.output, x, weight.out, row * weight.n + column, n);
    }
  }
}

void multiply_panel(const WeightOnly& call, const LinearInt4Tile& tile) {
#if defined(TESSERAL_BF16_DOT)
  call.pairs ? panel_tile<true>(call, tile) : panel_tile<false>(call, tile);
#else
  panel_tile<false>(call, tile);
#endif
  write_tile(call, tile);
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

// Linear layers over packed 4-bit weights and floating rows; compiled once per instruction set.
//
// Eight codes fill a lane of 32 bits. A chunk is a vector of such lanes, and place j of it the
// elements 8 i + j, one of each lane: a shift and a look-up turn a place into numbers.
#include "tesseral/weight_only.h"

#include "kernels/row_elements.h"
#include "simd/unroll.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int places = 8;
constexpr int64_t chunk = places * lanes;
constexpr int64_t panel_columns = linear_int4_panel;
constexpr int64_t tile_columns = tile_vectors * lanes;
constexpr int64_t block_steps = 1024;  // of a panel: 256 KiB
constexpr int64_t most_rows = 256;     // that share a panel, measured: their sums are 64 KiB
constexpr int64_t ahead_bytes = 4096;  // weights are one stream of addresses, fetched so far ahead
static_assert(chunk == 2 * vector_bytes && panel_columns % tile_columns == 0, "tiles fill panels");

int64_t packed_bytes(int64_t k) { return (k + 1) / 2; }
int64_t n_chunks(int64_t k) { return (k + chunk - 1) / chunk; }

bool takes_pairs(const WeightOnly& call) {
#if defined(TESSERAL_BF16_DOT)
  return call.element == RowElement::bf16;
#else
  (void)call;
  return false;
#endif
}

bool is_valid(const WeightOnly& call) {
  return call.m >= 0 && call.k >= 1 && call.stride >= call.k && call.k <= linear_int4_max_k &&
         linear_int4_takes_groups(call.k, call.group) && call.n_weights >= 1 &&
         call.element != RowElement::f16 && call.output != LinearOutput::sums &&
         (!call.pairs || takes_pairs(call));
}

bool is_valid(const WeightOnly& call, const LinearInt4Tile& tile) {
  return is_valid(call) && tile.weight >= 0 && tile.weight < call.n_weights &&
         tile.row_begin >= 0 && tile.row_end <= call.m && tile.column_begin >= 0 &&
         tile.column_end <= call.weights[tile.weight].n;
}

// Elements of a row that a step of a panel takes.
int64_t step_elements(const WeightOnly& call) { return call.pairs ? 2 : 1; }

int64_t row_floats(const WeightOnly& call, bool stream) {
  const int64_t elements = n_chunks(call.k) * chunk;
  if (stream) return elements;
  const int64_t floats = elements / step_elements(call);
  // rows a multiple of 4096 bytes apart would all lie in the same sets of the L1 cache
  return floats % 128 == 0 ? floats + 16 : floats;
}

LinearPanels panel_sizes(const WeightOnly& call) {
  const int64_t steps = smaller(block_steps, n_chunks(call.k) * chunk / step_elements(call));
  LinearPanels sizes;
  sizes.rows = most_rows;
  sizes.bytes = steps * panel_columns * int64_t{sizeof(float)};
  return sizes;
}

void store_output(LinearOutput output, Floats x, void* out, int64_t at, int count) {
  store_some(output == LinearOutput::f32 ? RowElement::f32 : RowElement::bf16, out, at, x, count);
}

// --- few rows ---

// Elements [begin, begin + count) of a row, zeros behind them up to a chunk.
void load_chunk(const WeightOnly& call, int64_t row, int64_t begin, float* out) {
  const int64_t count = smaller(chunk, call.k - begin);
  for (int64_t i = 0; i < chunk; i += lanes) {
    const int64_t at = row * call.stride + begin + i;
    const int64_t left = count - i;
    store(out + i, left >= lanes ? load_lanes(call.element, call.rows, at)
                   : left > 0    ? load_some(call.element, call.rows, at, static_cast<int>(left))
                                 : zero());
  }
}

void prepare_streamed(const WeightOnly& call, int64_t row, float* prepared) {
  alignas(64) float values[chunk];
  for (int64_t begin = 0; begin < call.k; begin += chunk) {
    load_chunk(call, row, begin, values);
    for (int64_t j = 0; j < places; ++j) {
      for (int64_t i = 0; i < lanes; ++i) prepared[begin + j * lanes + i] = values[places * i + j];
    }
  }
}

inline Ints words_at(const uint8_t* p, int64_t left) {
  return as_ints(left >= vector_bytes ? load_bytes(p) : load_some_bytes(p, left));
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

template <int Rows, int Parts>
inline void clear(Floats (&sums)[Rows][Parts]) {
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int p = 0; p < Parts; ++p) sums[r][p] = zero();
  }
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
  const int64_t stride = row_floats(call, true);
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

Status stream(const WeightOnly& call, const LinearInt4Tile& tile) {
  if (!is_valid(call, tile)) return Status::invalid;
  const LinearInt4Weight& weight = call.weights[tile.weight];
  for (int64_t column = tile.column_begin; column < tile.column_end; ++column) {
    for (int64_t row = tile.row_begin; row < tile.row_end; row += stream_rows) {
      stream_of<stream_rows>(tile.row_end - row)(call, weight, row, column);
    }
  }
  return Status::ok;
}

// --- many rows ---

// As float32, or as pairs of bfloat16 in the order of the row.
void prepare_for_panels(const WeightOnly& call, int64_t row, float* prepared) {
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
  const int64_t stride = row_floats(call, false);
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

Status panels(const WeightOnly& call, const LinearInt4Tile& tile) {
  if (!is_valid(call, tile) || tile.column_end - tile.column_begin > panel_columns) {
    return Status::invalid;
  }
#if defined(TESSERAL_BF16_DOT)
  call.pairs ? panel_tile<true>(call, tile) : panel_tile<false>(call, tile);
#else
  panel_tile<false>(call, tile);
#endif
  write_tile(call, tile);
  return Status::ok;
}

Status prepare(const WeightOnly& call, bool stream, int64_t begin, int64_t end) {
  if (!is_valid(call) || begin < 0 || end > call.m) return Status::invalid;
  const int64_t floats = row_floats(call, stream);
  for (int64_t row = begin; row < end; ++row) {
    float* prepared = call.prepared + row * floats;
    stream ? prepare_streamed(call, row, prepared) : prepare_for_panels(call, row, prepared);
  }
  return Status::ok;
}

}  // namespace

extern const WeightOnlyKernels weight_only;
const WeightOnlyKernels weight_only = {takes_pairs, row_floats, panel_sizes,
                                       prepare,     stream,     panels};

}  // namespace tesseral::TESSERAL_TARGET

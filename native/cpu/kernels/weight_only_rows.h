// What all ways to compute share: which calls are valid, reading rows and codes, and the output.
//
// Eight codes fill a lane of 32 bits. A chunk is a vector of such lanes, and place j of it the
// elements 8 i + j, one of each lane: a shift and a look-up turn a place into numbers.
#pragma once

#include "kernels/row_elements.h"
#include "simd/unroll.h"
#include "tesseral/weight_only.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int places = 8;
constexpr int64_t chunk = places * lanes;
static_assert(chunk == 2 * vector_bytes, "a chunk is a vector of codes");

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

void store_output(LinearOutput output, Floats x, void* out, int64_t at, int count) {
  store_some(output == LinearOutput::f32 ? RowElement::f32 : RowElement::bf16, out, at, x, count);
}

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

inline Ints words_at(const uint8_t* p, int64_t left) {
  return as_ints(left >= vector_bytes ? load_bytes(p) : load_some_bytes(p, left));
}

template <int Rows, int Parts>
inline void clear(Floats (&sums)[Rows][Parts]) {
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int p = 0; p < Parts; ++p) sums[r][p] = zero();
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

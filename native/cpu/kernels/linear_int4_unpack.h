// Packed weights as quads: four neighbouring elements of k of a column, side by side.
#pragma once

#include "kernels/linear_int4_rows.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

// Offset to 0..15, as instructions want that multiply unsigned by signed bytes.
struct Offset {
  static Bytes low(Bytes x) { return low_nibbles(x); }
  static Bytes high(Bytes x) { return high_nibbles(x); }
};

// One vector of codes of each of `lanes` rows; a row of `lanes` quads is stored every
// `quad_stride` bytes.
template <class Codes>
inline void unpack_vectors(const uint8_t* const (&rows)[lanes], int64_t begin, int64_t bytes,
                           uint8_t* out, int64_t quad_stride) {
  Floats first[lanes];
  Floats last[lanes];
  for (int i = 0; i < lanes; ++i) {
    const uint8_t* p = rows[i] + begin;
    const Bytes x = bytes >= vector_bytes ? load_bytes(p) : load_some_bytes(p, bytes);
    const Bytes low = Codes::low(x);
    const Bytes high = Codes::high(x);
    first[i] = as_floats(interleave_first(low, high));
    last[i] = as_floats(interleave_last(low, high));
  }
  transpose(first);
  transpose(last);
  for (int64_t i = 0; i < lanes; ++i) {
    // 16 packed bytes make 8 quads: 4 in `first`, 4 in `last`
    uint8_t* p = out + (8 * (i / 4) + i % 4) * quad_stride;
    store_bytes(p, as_bytes(first[i]));
    store_bytes(p + 4 * quad_stride, as_bytes(last[i]));
  }
}

// `lanes` columns from `column` on; past column `last`, that one again.
template <class Codes>
void unpack_columns(const LinearInt4& call, const LinearInt4Weight& weight, int64_t column,
                    int64_t last, uint8_t* out, int64_t quad_stride) {
  const int64_t bytes = packed_bytes(call.k);
  const uint8_t* rows[lanes];
  for (int i = 0; i < lanes; ++i) rows[i] = weight.codes + smaller(column + i, last) * bytes;
  for (int64_t at = 0; at < bytes; at += vector_bytes) {
    unpack_vectors<Codes>(rows, at, bytes - at, out, quad_stride);
    out += chunk / 4 * quad_stride;
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

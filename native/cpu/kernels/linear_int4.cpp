// int8 activations times packed int4 weights, exact in int32; compiled once per instruction set.
//
// Weights are offset to 0..15, so that one instruction multiplies unsigned by signed bytes and
// adds neighbours: at most 2 * 15 * 128 = 3840 in magnitude, which cannot saturate 16 bits. Such
// sums are kept in 16 bits as long as the largest activation allows (8 additions for full int8,
// 136 for int4 values), then widened. What the offset added, 8 times the sum of the activation
// row, is taken off at the end.
//
// A vector of packed weights yields its low nibbles (even elements) and its high nibbles (odd
// elements). Instead of interleaving them, `prepare` splits each activation row the same way.

#include "tesseral/linear_int4.h"

#include TESSERAL_SIMD

namespace tesseral::TESSERAL_TARGET {
namespace {

using std::int32_t;
using std::int64_t;
using std::int8_t;
using std::uint8_t;

constexpr int column_block = 4;

int64_t packed_bytes(int64_t k) { return (k + 1) / 2; }

int64_t chunks(int64_t k) { return (packed_bytes(k) + vector_bytes - 1) / vector_bytes; }

int64_t row_bytes(int64_t k) {
  constexpr int64_t alignment = 64;
  return (2 * vector_bytes * chunks(k) + alignment - 1) / alignment * alignment;
}

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Lays a row out as, for every chunk, one vector of even and one of odd elements, padded with
// zeros.
RowSummary prepare_row(const int8_t* row, int64_t k, int8_t* prepared) {
  int32_t sum = 0;
  int32_t magnitude = 0;
  for (int64_t i = 0; i < k; ++i) {
    const int32_t value = row[i];
    const int32_t absolute = value < 0 ? -value : value;
    sum += value;
    magnitude = absolute > magnitude ? absolute : magnitude;
  }
  for (int64_t chunk = 0; chunk < chunks(k); ++chunk) {
    const int8_t* source = row + 2 * vector_bytes * chunk;
    int8_t* even = prepared + 2 * vector_bytes * chunk;
    int8_t* odd = even + vector_bytes;
    const int64_t left = k - 2 * vector_bytes * chunk;
    if (left >= 2 * vector_bytes) {
      for (int64_t i = 0; i < vector_bytes; ++i) {
        even[i] = source[2 * i];
        odd[i] = source[2 * i + 1];
      }
    } else {
      for (int64_t i = 0; i < vector_bytes; ++i) {
        even[i] = 2 * i < left ? source[2 * i] : int8_t{0};
        odd[i] = 2 * i + 1 < left ? source[2 * i + 1] : int8_t{0};
      }
    }
  }
  return {8 * sum, magnitude};
}

// Four rows of packed weights, unpacked in registers: what few activation rows want.
struct PackedRows {
  const uint8_t* row[column_block];
  int64_t bytes;

  void load_pair(int i, int64_t chunk, Bytes& low, Bytes& high) const {
    const int64_t begin = chunk * vector_bytes;
    const uint8_t* p = row[i] + begin;
    const Bytes x = bytes - begin >= vector_bytes ? load(p) : load_partial(p, bytes - begin);
    low = low_nibbles(x);
    high = high_nibbles(x);
  }
};

// Four rows of a panel unpacked before: what many activation rows want.
struct PanelRows {
  const uint8_t* row[column_block];

  void load_pair(int i, int64_t chunk, Bytes& low, Bytes& high) const {
    const uint8_t* p = row[i] + 2 * vector_bytes * chunk;
    low = load(p);
    high = load(p + vector_bytes);
  }
};

// Chunks whose products may be added in 16 bits: each adds two sums of two products.
int64_t chunks_in_16_bits(const RowSummary* summaries, int n_rows) {
  int32_t magnitude = 1;
  for (int r = 0; r < n_rows; ++r) {
    magnitude = summaries[r].magnitude > magnitude ? summaries[r].magnitude : magnitude;
  }
  return 32767 / (2 * 2 * 15 * magnitude);
}

// out[row : row + Rows, column : column + n_columns], with n_columns <= 4.
template <int Rows, class Weights>
void compute_block(const LinearInt4& call, const Weights& weights, int64_t row, int64_t column,
                   int n_columns) {
  const int64_t n_chunks = chunks(call.k);
  const int64_t stride = row_bytes(call.k);
  const int64_t limit = chunks_in_16_bits(call.summaries + row, Rows);
  const int8_t* activations = call.rows + row * stride;

  Ints sums[Rows][column_block];
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < column_block; ++c) sums[r][c] = zero_ints();
  }
  for (int64_t chunk = 0; chunk < n_chunks;) {
    Words words[Rows][column_block];
    for (int r = 0; r < Rows; ++r) {
      for (int c = 0; c < column_block; ++c) words[r][c] = zero_words();
    }
    for (const int64_t stop = smaller(chunk + limit, n_chunks); chunk < stop; ++chunk) {
      Bytes even[Rows];
      Bytes odd[Rows];
      for (int r = 0; r < Rows; ++r) {
        even[r] = load(activations + r * stride + 2 * vector_bytes * chunk);
        odd[r] = load(activations + r * stride + 2 * vector_bytes * chunk + vector_bytes);
      }
      for (int c = 0; c < column_block; ++c) {
        Bytes low;
        Bytes high;
        weights.load_pair(c, chunk, low, high);
        for (int r = 0; r < Rows; ++r) {
          words[r][c] = add_products(add_products(words[r][c], low, even[r]), high, odd[r]);
        }
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int c = 0; c < column_block; ++c) sums[r][c] = add_widened(sums[r][c], words[r][c]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    const int32_t offset = call.summaries[row + r].offset;
    int32_t* out = call.out + (row + r) * call.n + column;
    if (n_columns == column_block) {
      reduce4(sums[r], offset, out);
    } else {
      int32_t totals[column_block];
      reduce4(sums[r], offset, totals);
      for (int c = 0; c < n_columns; ++c) out[c] = totals[c];
    }
  }
}

template <class Weights>
void compute_rows(const LinearInt4& call, const Weights& weights, int64_t row, int64_t row_end,
                  int64_t column, int n_columns) {
  for (; row + row_block <= row_end; row += row_block) {
    compute_block<row_block>(call, weights, row, column, n_columns);
  }
  for (; row < row_end; ++row) compute_block<1>(call, weights, row, column, n_columns);
}

void unpack_row(const uint8_t* packed, int64_t bytes, uint8_t* panel) {
  const PackedRows rows = {{packed, packed, packed, packed}, bytes};
  for (int64_t chunk = 0; chunk * vector_bytes < bytes; ++chunk) {
    Bytes low;
    Bytes high;
    rows.load_pair(0, chunk, low, high);
    store(panel + 2 * vector_bytes * chunk, low);
    store(panel + 2 * vector_bytes * chunk + vector_bytes, high);
  }
}

// Pointers to four rows from `first` on; past the last one, the last again.
template <class Weights>
void point_at(Weights& weights, const uint8_t* first, int64_t stride, int n_columns) {
  for (int c = 0; c < column_block; ++c) {
    weights.row[c] = first + smaller(c, n_columns - 1) * stride;
  }
}

void compute_streaming(const LinearInt4& call, const LinearInt4Tile& tile) {
  PackedRows weights;
  weights.bytes = packed_bytes(call.k);
  for (int64_t column = tile.column_begin; column < tile.column_end; column += column_block) {
    const int n_columns = static_cast<int>(smaller(column_block, tile.column_end - column));
    point_at(weights, call.weight + column * weights.bytes, weights.bytes, n_columns);
    compute_rows(call, weights, tile.row_begin, tile.row_end, column, n_columns);
  }
}

void compute_with_panel(const LinearInt4& call, const LinearInt4Tile& tile) {
  const int64_t bytes = packed_bytes(call.k);
  const int64_t stride = row_bytes(call.k);
  for (int64_t column = tile.column_begin; column < tile.column_end; ++column) {
    unpack_row(call.weight + column * bytes, bytes,
               tile.panel + (column - tile.column_begin) * stride);
  }
  // rows outside, so that a block of activations meets the whole panel while it is in cache
  for (int64_t row = tile.row_begin; row < tile.row_end; row += row_block) {
    const int64_t row_end = smaller(row + row_block, tile.row_end);
    for (int64_t column = tile.column_begin; column < tile.column_end; column += column_block) {
      const int n_columns = static_cast<int>(smaller(column_block, tile.column_end - column));
      PanelRows weights;
      point_at(weights, tile.panel + (column - tile.column_begin) * stride, stride, n_columns);
      compute_rows(call, weights, row, row_end, column, n_columns);
    }
  }
}

Status prepare(const LinearInt4& call, int64_t begin, int64_t end) {
  if (call.k < 1 || call.k > linear_int4_max_k || begin < 0 || end > call.m) return Status::invalid;
  const int64_t stride = row_bytes(call.k);
  for (int64_t row = begin; row < end; ++row) {
    call.summaries[row] =
        prepare_row(call.activations + row * call.k, call.k, call.rows + row * stride);
  }
  return Status::ok;
}

Status compute(const LinearInt4& call, const LinearInt4Tile& tile) {
  if (call.k < 1 || call.k > linear_int4_max_k || tile.row_begin < 0 || tile.row_end > call.m ||
      tile.column_begin < 0 || tile.column_end > call.n) {
    return Status::invalid;
  }
  if (tile.row_end - tile.row_begin <= row_block) {
    compute_streaming(call, tile);
  } else {
    compute_with_panel(call, tile);
  }
  return Status::ok;
}

}  // namespace

extern const LinearInt4Kernels linear_int4;
const LinearInt4Kernels linear_int4 = {row_bytes, prepare, compute};

}  // namespace tesseral::TESSERAL_TARGET

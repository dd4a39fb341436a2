// The transform of bfloat16 rows by products of pairs, where the instruction set has these.
//
// A tile of rows meets the pairs of two vectors of columns; the rows are read as they lie, a pair
// at a time. What the first product gives is rounded and paired while it is in registers, and the
// range of the second is taken there.
#pragma once

#include "kernels/row_range.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

// Held while rows are transformed: nothing.
struct PairUnit {};

#if defined(TESSERAL_BF16_DOT)

constexpr int64_t pair_columns = 2 * lanes;

bool takes_pairs(const QuantizeRows& call) {
  return call.element == RowElement::bf16 && call.left_factor != nullptr && call.left % 2 == 0 &&
         call.right % pair_columns == 0;
}

inline Floats take(const float* p, int count) {
  return count == lanes ? load(p) : load_part(p, count);
}

// out[k / 2] = rows k and k + 1 of a factor, paired.
void pair_rows(const float* factor, int64_t n, float* out) {
  for (int64_t k = 0; k < n; k += 2) {
    for (int64_t c = 0; c < n; c += lanes) {
      const float* p = factor + k * n + c;
      store(out + k / 2 * n + c, pair_lanes(load(p), load(p + n)));
    }
  }
}

PairSizes pair_sizes(const QuantizeRows& call) {
  PairSizes sizes;
  sizes.left = call.left * call.left / 2;
  sizes.right = call.right_factor == nullptr ? 0 : call.right * call.right / 2;
  return sizes;
}

Status prepare_pairs(const QuantizeRows& call, float* left_pairs, float* right_pairs) {
  if (!takes_pairs(call)) return Status::invalid;
  const int64_t n = call.left;
  alignas(64) float pairs[lanes];
  for (int64_t k = 0; k < n; k += 2) {
    for (int64_t c = 0; c < n; c += lanes) {
      const int count = static_cast<int>(smaller(lanes, n - c));
      const float* p = call.left_factor + k * n + c;
      store(pairs, pair_lanes(take(p, count), take(p + n, count)));
      for (int i = 0; i < count; ++i) left_pairs[(c + i) * (n / 2) + k / 2] = pairs[i];
    }
  }
  if (call.right_factor != nullptr) pair_rows(call.right_factor, call.right, right_pairs);
  return Status::ok;
}

// sums[r][v] = sum over steps of the pairs a[r * a_stride + step] and b[step * b_stride + v].
template <int Rows>
inline void dot_tile(const char* a, int64_t a_stride, int64_t steps, const float* b,
                     int64_t b_stride, Floats (&sums)[Rows][2]) {
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = zero();
  for (int64_t step = 0; step < steps; ++step) {
    const Floats first = load(b + step * b_stride);
    const Floats last = load(b + step * b_stride + lanes);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Floats x = broadcast_pair(a + 4 * (r * a_stride + step));
      sums[r][0] = add_pair_products(sums[r][0], x, first);
      sums[r][1] = add_pair_products(sums[r][1], x, last);
    }
  }
}

// Rows [row, row + Rows) of X right_factor, rounded and paired.
template <int Rows>
void first_product(const QuantizeRows& call, const char* x, int64_t row, float* middle) {
  for (int64_t c = 0; c < call.right; c += pair_columns) {
    Floats sums[Rows][2];
    dot_tile<Rows>(x + 2 * row * call.right, call.right / 2, call.right / 2, call.right_pairs + c,
                   call.right, sums);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; r += 2) {
      float* out = middle + (row + r) / 2 * call.right + c;
      store(out, pair_lanes(sums[r][0], sums[r + 1][0]));
      store(out + lanes, pair_lanes(sums[r][1], sums[r + 1][1]));
    }
  }
}

// Rows [row, row + Rows) of left_factor^T M.
template <int Rows>
void second_product(const QuantizeRows& call, const float* middle, int64_t row, float* output,
                    Bounds& bounds) {
  const char* a = reinterpret_cast<const char*>(call.left_pairs + row * (call.left / 2));
  for (int64_t c = 0; c < call.right; c += pair_columns) {
    Floats sums[Rows][2];
    dot_tile<Rows>(a, call.left / 2, call.left / 2, middle + c, call.right, sums);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      float* out = output + (row + r) * call.right + c;
      store(out, sums[r][0]);
      store(out + lanes, sums[r][1]);
      bounds.add(sums[r][0]);
      bounds.add(sums[r][1]);
    }
  }
}

// Calls step(row, rows) for tiles of 8 rows and what is left, an even number.
template <class Step8, class Step2>
void in_tiles(int64_t rows, Step8 step8, Step2 step2) {
  int64_t row = 0;
  for (; row + 8 <= rows; row += 8) step8(row);
  for (; row < rows; row += 2) step2(row);
}

// Floats of the rows between the two products, and of a transformed row.
int64_t middle_floats(const QuantizeRows& call) { return call.left * call.right / 2; }
int64_t output_floats(const QuantizeRows& call) { return call.left * call.right; }

// Fills `output` with the transformed row; `middle` holds left / 2 * right pairs.
Range transform_pairs(const QuantizeRows& call, int64_t row, float* middle, float* output) {
  const uint16_t* x = static_cast<const uint16_t*>(call.rows) + row * call.stride;
  const char* bytes = reinterpret_cast<const char*>(x);
  if (call.right_factor != nullptr) {
    in_tiles(
        call.left, [&](int64_t r) { first_product<8>(call, bytes, r, middle); },
        [&](int64_t r) { first_product<2>(call, bytes, r, middle); });
  } else {
    for (int64_t r = 0; r < call.left; r += 2) {
      for (int64_t c = 0; c < call.right; c += lanes) {
        const uint16_t* p = x + r * call.right + c;
        store(middle + r / 2 * call.right + c, interleave_bf16(p, p + call.right));
      }
    }
  }
  Bounds bounds;
  in_tiles(
      call.left, [&](int64_t r) { second_product<8>(call, middle, r, output, bounds); },
      [&](int64_t r) { second_product<2>(call, middle, r, output, bounds); });
  return bounds.range();
}

#else

bool takes_pairs(const QuantizeRows&) { return false; }
PairSizes pair_sizes(const QuantizeRows&) { return {}; }
int64_t middle_floats(const QuantizeRows&) { return 0; }
int64_t output_floats(const QuantizeRows&) { return 0; }
Status prepare_pairs(const QuantizeRows&, float*, float*) { return Status::invalid; }
Range transform_pairs(const QuantizeRows&, int64_t, float*, float*) { return {0, 0, 0}; }

#endif

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

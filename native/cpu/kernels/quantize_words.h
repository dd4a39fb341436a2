// The transform of bfloat16 rows by products of 16-bit integers, where the instruction set has no
// products of bfloat16: two multiplications take the time of one in float32.
//
// A row becomes integers of 14 bits and a sign, in steps of its largest element. Factors are scaled
// so that no column's sum of magnitudes reaches 2^17: sums of products then fit 32 bits, and what
// is between the two products fits 16 again after a shift. All roundings together are smaller than
// those of bfloat16 relative to the largest element of a row, which is what a code's step is.
#pragma once

#include "kernels/row_range.h"
#include "simd/avx2_words.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

// Held while rows are transformed: nothing.
struct PairUnit {};

constexpr int middle_shift = 17;
constexpr float largest_word = 32767.0f;
constexpr float largest_element = 16383.0f;  // of a row
constexpr float largest_column = 131000.0f;  // sum of magnitudes; rounding adds half for each
constexpr int64_t word_columns = 2 * lanes;
constexpr int64_t most_side = 128;  // elements of a column

bool takes_pairs(const QuantizeRows& call) {
  return call.element == RowElement::bf16 && call.left_factor != nullptr &&
         call.right_factor != nullptr && call.left % 2 == 0 && call.right % word_columns == 0 &&
         call.left <= most_side && call.right <= most_side;
}

// After the pairs of a factor comes what an integer of it stands for.
PairSizes pair_sizes(const QuantizeRows& call) {
  return {call.left * call.left / 2 + 1, call.right * call.right / 2 + 1};
}

inline Floats take(const float* p, int count) {
  return count == lanes ? load(p) : load_part(p, count);
}

// What elements of a factor are multiplied by to become integers; NaN if one is.
float factor_steps(const float* factor, int64_t n) {
  float column = 0x1p-100f;
  float element = 0x1p-100f;
  Floats poison = zero();
  for (int64_t c = 0; c < n; c += lanes) {
    const int count = static_cast<int>(smaller(lanes, n - c));
    Floats sum = zero();
    Floats most = zero();
    for (int64_t k = 0; k < n; ++k) {
      const Floats x = magnitude(take(factor + k * n + c, count));
      sum = add(sum, x);
      most = larger(most, x);
      poison = multiply_add(x, zero(), poison);
    }
    column = largest_lane(sum) > column ? largest_lane(sum) : column;
    element = largest_lane(most) > element ? largest_lane(most) : element;
  }
  const float by_column = (largest_column - static_cast<float>(n)) / column;
  const float by_element = largest_word / element;
  return (by_column < by_element ? by_column : by_element) + sum_lanes(poison);
}

Status prepare_pairs(const QuantizeRows& call, float* left_pairs, float* right_pairs) {
  if (!takes_pairs(call)) return Status::invalid;
  const int64_t n = call.left;
  const float left_steps = factor_steps(call.left_factor, n);
  left_pairs[n * n / 2] = 1.0f / left_steps;
  alignas(64) float pairs[lanes];
  for (int64_t k = 0; k < n; k += 2) {
    for (int64_t c = 0; c < n; c += lanes) {
      const int count = static_cast<int>(smaller(lanes, n - c));
      const float* p = call.left_factor + k * n + c;
      store_pairs(pairs,
                  pair_ints(rounded_ints(multiply(take(p, count), broadcast(left_steps))),
                            rounded_ints(multiply(take(p + n, count), broadcast(left_steps)))));
      for (int i = 0; i < count; ++i) left_pairs[(c + i) * (n / 2) + k / 2] = pairs[i];
    }
  }
  const float right_steps = factor_steps(call.right_factor, call.right);
  right_pairs[call.right * call.right / 2] = 1.0f / right_steps;
  for (int64_t k = 0; k < call.right; k += 2) {
    for (int64_t c = 0; c < call.right; c += lanes) {
      const float* p = call.right_factor + k * call.right + c;
      store_pairs(right_pairs + k / 2 * call.right + c,
                  pair_ints(rounded_ints(multiply(load(p), broadcast(right_steps))),
                            rounded_ints(multiply(load(p + call.right), broadcast(right_steps)))));
    }
  }
  return Status::ok;
}

// sums[r][v] = sum over steps of the pairs a[r * a_stride + step] and b[step * b_stride + v].
template <int Rows>
inline void dot_tile(const float* a, int64_t a_stride, int64_t steps, const float* b,
                     int64_t b_stride, Ints (&sums)[Rows][2]) {
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = zero_ints();
  for (int64_t step = 0; step < steps; ++step) {
    const Pairs first = load_pairs(b + step * b_stride);
    const Pairs last = load_pairs(b + step * b_stride + lanes);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Pairs x = repeat_pair(a + r * a_stride + step);
      sums[r][0] = add_pair_products(sums[r][0], x, first);
      sums[r][1] = add_pair_products(sums[r][1], x, last);
    }
  }
}

// Rows [row, row + Rows) of X right_factor, rounded and paired.
template <int Rows>
void first_product(const QuantizeRows& call, const float* words, int64_t row, float* middle) {
  const int64_t steps = call.right / 2;
  for (int64_t c = 0; c < call.right; c += word_columns) {
    Ints sums[Rows][2];
    dot_tile<Rows>(words + row * steps, steps, steps, call.right_pairs + c, call.right, sums);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; r += 2) {
      float* out = middle + (row + r) / 2 * call.right + c;
      TESSERAL_UNROLL
      for (int v = 0; v < 2; ++v) {
        store_pairs(out + v * lanes, pair_ints(shift_rounded<middle_shift>(sums[r][v]),
                                               shift_rounded<middle_shift>(sums[r + 1][v])));
      }
    }
  }
}

// Rows [row, row + Rows) of left_factor^T M, in units of `unit`.
template <int Rows>
void second_product(const QuantizeRows& call, const float* middle, int64_t row, Floats unit,
                    float* output, Bounds& bounds) {
  const int64_t steps = call.left / 2;
  for (int64_t c = 0; c < call.right; c += word_columns) {
    Ints sums[Rows][2];
    dot_tile<Rows>(call.left_pairs + row * steps, steps, steps, middle + c, call.right, sums);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      float* out = output + (row + r) * call.right + c;
      TESSERAL_UNROLL
      for (int v = 0; v < 2; ++v) {
        const Floats x = multiply(to_floats(sums[r][v]), unit);
        store(out + v * lanes, x);
        bounds.low = lesser(bounds.low, x);
        bounds.high = larger(bounds.high, x);
      }
    }
  }
}

// Calls step6(row) or step2(row) for tiles of 6 rows and what is left, an even number.
template <class Step6, class Step2>
void in_tiles(int64_t rows, Step6 step6, Step2 step2) {
  int64_t row = 0;
  for (; row + 6 <= rows; row += 6) step6(row);
  for (; row < rows; row += 2) step2(row);
}

// Floats of the row as integers and of the rows between the two products, and of a transformed row.
int64_t middle_floats(const QuantizeRows& call) { return call.left * call.right; }
int64_t output_floats(const QuantizeRows& call) { return call.left * call.right; }

// Fills `output` with the transformed row.
Range transform_pairs(const QuantizeRows& call, int64_t row, float* scratch, float* output) {
  const int64_t n = call.left * call.right;
  const uint16_t* x = static_cast<const uint16_t*>(call.rows) + row * call.stride;
  float* words = scratch;
  float* middle = scratch + n / 2;
  Floats most[2] = {broadcast(0x1p-90f), broadcast(0x1p-90f)};
  Floats poison[2] = {zero(), zero()};
  for (int64_t i = 0; i < n; i += word_columns) {
    TESSERAL_UNROLL
    for (int v = 0; v < 2; ++v) {
      const Floats lane = load_bf16(x + i + v * lanes);
      most[v] = larger(most[v], magnitude(lane));
      poison[v] = multiply_add(lane, zero(), poison[v]);
    }
  }
  const float largest = largest_lane(larger(most[0], most[1]));
  const Floats steps = broadcast(largest_element / largest);
  for (int64_t i = 0; i < n; i += word_columns) {
    store_pairs(words + i / 2, words_of(multiply(load_bf16(x + i), steps),
                                        multiply(load_bf16(x + i + lanes), steps)));
  }
  in_tiles(
      call.left, [&](int64_t r) { first_product<6>(call, words, r, middle); },
      [&](int64_t r) { first_product<2>(call, words, r, middle); });
  const float unit = largest / largest_element * call.right_pairs[call.right * call.right / 2] *
                     call.left_pairs[call.left * call.left / 2] *
                     static_cast<float>(1 << middle_shift);
  Bounds bounds;
  in_tiles(
      call.left,
      [&](int64_t r) { second_product<6>(call, middle, r, broadcast(unit), output, bounds); },
      [&](int64_t r) { second_product<2>(call, middle, r, broadcast(unit), output, bounds); });
  bounds.poison = multiply(broadcast(unit), zero());
  Range range = bounds.range();
  range.poison += sum_lanes(add(poison[0], poison[1]));
  return range;
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

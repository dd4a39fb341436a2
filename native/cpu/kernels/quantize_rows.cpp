// Transform and quantise rows in one pass; a row stays in the L1 cache from its load to its codes.
#include "tesseral/quantize_rows.h"

#include "kernels/row_range.h"
#if defined(TESSERAL_TILES)
#include "kernels/quantize_tiles.h"
#elif defined(TESSERAL_INT16_DOT)
#include "kernels/quantize_words.h"
#else
#include "kernels/quantize_pairs.h"
#endif

namespace tesseral::TESSERAL_TARGET {
namespace {

// Widens a row into rows of `stride`, zeros behind each that is not whole vectors.
void widen(const QuantizeRows& call, int64_t row, int64_t rows, int64_t columns, int64_t stride,
           float* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = row * call.stride + i * columns;
    int64_t c = 0;
    for (; c + lanes <= columns; c += lanes) {
      store(out + i * stride + c, load_lanes(call.element, call.rows, at + c));
    }
    if (c == columns) continue;
    const int count = static_cast<int>(columns - c);
    const Floats x = load_some(call.element, call.rows, at + c, count);
    if (stride >= c + lanes) {
      store(out + i * stride + c, x);
    } else {
      store_part(out + i * stride + c, x, count);
    }
  }
}

// x ends in whole vectors: copies of x[0] follow its n elements.
Range range_of(const float* x, int64_t n) {
  Floats low = load(x);
  Floats high = low;
  Floats poison = zero();
  for (int64_t i = 0; i < n; i += lanes) {
    const Floats v = load(x + i);
    low = lesser(low, v);
    high = larger(high, v);
    poison = multiply_add(v, zero(), poison);
  }
  return {-largest_lane(subtract(zero(), low)), largest_lane(high), sum_lanes(poison)};
}

float scale_of(const Range& range, const float* clip, int bits) {
  const float low = range.low * clip[0];
  const float high = range.high * clip[1];
  const float above = high > -low ? high : -low;
  const float below = high > -low ? -low : high;
  const float least = static_cast<float>(1 << (bits - 1));
  float size = above / least;
  if (below / (least - 1) > size) size = below / (least - 1);
  if (size < 0x1p-60f) size = 0x1p-60f;
  return (high > -low ? -size : size) + range.poison;
}

// x / scale, correctly rounded: a product with the inverse, and what it lacks (Markstein 1990).
inline Floats quotient(Floats x, Floats scale, Floats inverse) {
#if defined(__FMA__)
  const Floats first = multiply(x, inverse);
  const Floats rest = multiply_add(subtract(zero(), first), scale, x);
  return multiply_add(rest, inverse, first);
#else
  (void)inverse;
  return divide(x, scale);
#endif
}

// Of values that are exact only to a bfloat16, a product with the inverse is as good a quotient.
template <bool Exact>
void write_codes(const float* x, int64_t n, float scale, int bits, int8_t* codes) {
  const Floats step = broadcast(scale);
  const Floats inverse = broadcast(1.0f / scale);
  const Floats least = broadcast(-static_cast<float>(1 << (bits - 1)));
  const Floats largest = broadcast(static_cast<float>((1 << (bits - 1)) - 1));
  for (int64_t i = 0; i < n; i += lanes) {
    const Floats v = load(x + i);
    const Floats steps = Exact ? quotient(v, step, inverse) : multiply(v, inverse);
    const Floats code = lesser(larger(steps, least), largest);
    store_rounded(codes + i, code, static_cast<int>(smaller(lanes, n - i)));
  }
}

struct Layout {
  int64_t input_stride;
  int64_t middle_stride;
  int64_t input;
  int64_t middle;
  int64_t output;
};

Layout layout_of(const QuantizeRows& call) {
  Layout layout;
  // what is multiplied from the left needs whole vectors
  const bool whole = call.left_factor != nullptr && call.right_factor == nullptr;
  layout.input_stride = whole ? padded(call.right) : call.right;
  layout.middle_stride = padded(call.right);
  layout.input = padded(call.left * layout.input_stride) + lanes;
  layout.middle = call.left * layout.middle_stride;
  layout.output = padded(call.left * call.right) + lanes;
  return layout;
}

int64_t scratch(const QuantizeRows& call) {
  if (call.left_pairs != nullptr) return padded(middle_floats(call)) + output_floats(call);
  const Layout layout = layout_of(call);
  return padded(layout.input) + padded(layout.middle) + padded(layout.output);
}

// Returns the transformed row, n floats.
float* transform(const QuantizeRows& call, int64_t row, float* scratch) {
  const Layout layout = layout_of(call);
  float* input = scratch;
  float* middle = input + padded(layout.input);
  float* output = middle + padded(layout.middle);
  const bool left = call.left_factor != nullptr;
  if (!left && call.right_factor == nullptr) {
    widen(call, row, 1, call.left * call.right, call.left * call.right, input);
    return input;
  }
  widen(call, row, call.left, call.right, layout.input_stride, input);
  const float* rows = input;
  int64_t stride = layout.input_stride;
  if (call.right_factor != nullptr) {
    const Matrix out = left ? Matrix{middle, layout.middle_stride, layout.middle_stride}
                            : Matrix{output, call.right, call.right};
    multiply(input, call.left, stride, 1, call.right, call.padded_factor, padded(call.right), out);
    if (!left) return output;
    rows = middle;
    stride = layout.middle_stride;
  }
  multiply(call.left_factor, call.left, 1, call.left, call.left, rows, stride,
           {output, call.right, call.right});
  return output;
}

void write_dense(const QuantizeRows& call, int64_t row, const float* x) {
  const int64_t n = call.left * call.right;
  for (int64_t i = 0; i < n; i += lanes) {
    const int count = static_cast<int>(smaller(lanes, n - i));
    store_some(call.element, call.dense, row * n + i, load(x + i), count);
  }
}

void run_pairs(const QuantizeRows& call, int64_t begin, int64_t end, float* scratch) {
  const int64_t n = call.left * call.right;
  float* output = scratch + padded(middle_floats(call));
  [[maybe_unused]] const PairUnit unit;
  for (int64_t row = begin; row < end; ++row) {
    const Range range = transform_pairs(call, row, scratch, output);
    const float scale = scale_of(range, call.clip, call.bits);
    write_codes<false>(output, n, scale, call.bits, call.codes + row * call.codes_stride);
    call.scale[row] = scale;
  }
}

Status run(const QuantizeRows& call, int64_t begin, int64_t end, float* scratch) {
  const int64_t n = call.left * call.right;
  if (call.left < 1 || call.right < 1 || begin < 0 || end > call.m) return Status::invalid;
  if (call.dense != nullptr) {
    for (int64_t row = begin; row < end; ++row) {
      write_dense(call, row, transform(call, row, scratch));
    }
    return Status::ok;
  }
  if (call.bits < 2 || call.bits > 8 || call.codes_stride < n) return Status::invalid;
  if (call.left_pairs != nullptr) {
    run_pairs(call, begin, end, scratch);
    return Status::ok;
  }
  for (int64_t row = begin; row < end; ++row) {
    int8_t* codes = call.codes + row * call.codes_stride;
    float* x = transform(call, row, scratch);
    for (int64_t i = n; i < padded(n); ++i) x[i] = x[0];
    const float scale = scale_of(range_of(x, n), call.clip, call.bits);
    write_codes<true>(x, n, scale, call.bits, codes);
    call.scale[row] = scale;
  }
  return Status::ok;
}

}  // namespace

extern const QuantizeRowsKernels quantize_rows;
const QuantizeRowsKernels quantize_rows = {padded,        takes_pairs, pair_sizes,
                                           prepare_pairs, scratch,     run};

}  // namespace tesseral::TESSERAL_TARGET

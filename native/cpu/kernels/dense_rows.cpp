// A dense weight times few rows: the weight is read from one or a few places, rows stay in the L1
// cache.
//
// Two bfloat16 numbers lie in each lane of 32 bits; rows are prepared likewise, as a vector of even
// elements and a vector of odd ones.
#include "tesseral/dense_rows.h"

#include "kernels/row_elements.h"
#include "simd/unroll.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int64_t pair = 2 * lanes;

// Columns far apart that are read at once where sums of all fit in registers, and how far ahead.
// Without AVX-512 (two cores of Zen 3), one place gave 23 GB/s, two gave 28 and four 40; with it,
// one gives more than four.
constexpr int most_places = lanes == 16 ? 1 : 4;
constexpr int64_t ahead_bytes = lanes == 16 ? 4096 : 512;

inline void load_pair(RowElement element, const void* p, int64_t at, Floats& first, Floats& last) {
  if (element == RowElement::bf16) {
    load_bf16_halves(static_cast<const uint16_t*>(p) + at, first, last);
  } else {
    first = load(static_cast<const float*>(p) + at);
    last = load(static_cast<const float*>(p) + at + lanes);
  }
}

bool is_valid(const DenseRows& call) {
  return call.m >= 1 && call.m <= dense_rows_most && call.k >= 1 &&
         call.k % dense_rows_multiple == 0 && call.element != RowElement::f16;
}

Status prepare(const DenseRows& call, float* prepared) {
  if (!is_valid(call)) return Status::invalid;
  for (int64_t i = 0; i < call.m * call.k; i += pair) {
    Floats first;
    Floats last;
    load_pair(call.element, call.rows, i, first, last);
    store(prepared + i, first);
    store(prepared + i + lanes, last);
  }
  return Status::ok;
}

// Columns `column`, `column + step` and so on.
template <RowElement Element, int Rows, int Places>
void multiply_columns(const DenseRows& call, int64_t column, int64_t step) {
  constexpr int64_t size = Element == RowElement::bf16 ? 2 : 4;
  const char* weight = static_cast<const char*>(call.weight) + column * call.k * size;
  const int64_t step_bytes = step * call.k * size;
  Floats sums[Places][Rows][2];
  TESSERAL_UNROLL
  for (auto& place : sums) {
    TESSERAL_UNROLL
    for (auto& row : place) row[0] = row[1] = zero();
  }
  for (int64_t i = 0; i < call.k; i += pair) {
    TESSERAL_UNROLL
    for (int p = 0; p < Places; ++p) {
      const char* from = weight + p * step_bytes;
      __builtin_prefetch(from + i * size + ahead_bytes, 0, 2);
      Floats first;
      Floats last;
      load_pair(Element, from, i, first, last);
      TESSERAL_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const float* x = call.prepared + r * call.k + i;
        sums[p][r][0] = multiply_add(first, load(x), sums[p][r][0]);
        sums[p][r][1] = multiply_add(last, load(x + lanes), sums[p][r][1]);
      }
    }
  }
  TESSERAL_UNROLL
  for (int p = 0; p < Places; ++p) {
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Floats total = broadcast(sum_lanes(add(sums[p][r][0], sums[p][r][1])));
      store_some(Element, call.out, r * call.n + column + p * step, total, 1);
    }
  }
}

template <RowElement Element, int Rows>
void multiply_range(const DenseRows& call, int64_t begin, int64_t end) {
  constexpr int places = most_places / Rows < 1 ? 1 : most_places / Rows;
  const int64_t step = (end - begin) / places;
  for (int64_t i = 0; i < step; ++i) {
    multiply_columns<Element, Rows, places>(call, begin + i, step);
  }
  for (int64_t column = begin + places * step; column < end; ++column) {
    multiply_columns<Element, Rows, 1>(call, column, 0);
  }
}

template <RowElement Element>
void multiply_range(const DenseRows& call, int64_t begin, int64_t end) {
  constexpr void (*of_rows[])(const DenseRows&, int64_t, int64_t) = {
      multiply_range<Element, 1>, multiply_range<Element, 2>, multiply_range<Element, 3>,
      multiply_range<Element, 4>};
  static_assert(sizeof of_rows / sizeof *of_rows == dense_rows_most, "one for each number of rows");
  of_rows[call.m - 1](call, begin, end);
}

Status run(const DenseRows& call, int64_t begin, int64_t end) {
  if (!is_valid(call) || begin < 0 || end > call.n) return Status::invalid;
  if (call.element == RowElement::bf16) {
    multiply_range<RowElement::bf16>(call, begin, end);
  } else {
    multiply_range<RowElement::f32>(call, begin, end);
  }
  return Status::ok;
}

}  // namespace

extern const DenseRowsKernels dense_rows;
const DenseRowsKernels dense_rows = {prepare, run};

}  // namespace tesseral::TESSERAL_TARGET

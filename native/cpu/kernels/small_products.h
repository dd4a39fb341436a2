// Products of small matrices that lie in the L1 cache.
#pragma once

#include "kernels/row_elements.h"
#include "simd/unroll.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

// A matrix in memory whose columns are neighbours.
struct Matrix {
  float* data;
  int64_t stride;
  int64_t columns;
};

// c[r, 0 : Columns * lanes] = sum over steps of a[r * row_stride + step * step_stride] * b[step];
// only `columns` of them are written.
template <int Rows, int Columns>
void multiply_tile(const float* a, int64_t row_stride, int64_t step_stride, int64_t steps,
                   const float* b, int64_t b_stride, float* c, int64_t c_stride, int64_t columns) {
  Floats sums[Rows][Columns];
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int v = 0; v < Columns; ++v) sums[r][v] = zero();
  }
  for (int64_t step = 0; step < steps; ++step) {
    Floats row[Columns];
    TESSERAL_UNROLL
    for (int v = 0; v < Columns; ++v) row[v] = load(b + step * b_stride + v * lanes);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Floats x = broadcast(a[r * row_stride + step * step_stride]);
      TESSERAL_UNROLL
      for (int v = 0; v < Columns; ++v) sums[r][v] = multiply_add(x, row[v], sums[r][v]);
    }
  }
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int v = 0; v < Columns; ++v) {
      float* p = c + r * c_stride + v * lanes;
      const int64_t left = columns - v * lanes;
      left >= lanes ? store(p, sums[r][v]) : store_part(p, sums[r][v], static_cast<int>(left));
    }
  }
}

template <int Rows, int Columns>
void multiply_rows(const float* a, int64_t rows, int64_t row_stride, int64_t step_stride,
                   int64_t steps, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                   int64_t columns) {
  for (; rows >= Rows; rows -= Rows) {
    multiply_tile<Rows, Columns>(a, row_stride, step_stride, steps, b, b_stride, c, c_stride,
                                 columns);
    a += Rows * row_stride;
    c += Rows * c_stride;
  }
  if constexpr (Rows > 1) {
    if (rows > 0) {
      multiply_rows<(Rows > 4 ? 4 : Rows / 2), Columns>(a, rows, row_stride, step_stride, steps, b,
                                                        b_stride, c, c_stride, columns);
    }
  }
}

// c = a b, or a^T b; b has whole vectors in a row.
void multiply(const float* a, int64_t rows, int64_t row_stride, int64_t step_stride, int64_t steps,
              const float* b, int64_t b_stride, const Matrix& c) {
  constexpr int64_t width = gemm_columns * lanes;
  int64_t column = 0;
  for (; column + width <= padded(c.columns); column += width) {
    multiply_rows<gemm_rows, gemm_columns>(a, rows, row_stride, step_stride, steps, b + column,
                                           b_stride, c.data + column, c.stride, c.columns - column);
  }
  for (; column < c.columns; column += lanes) {
    multiply_rows<gemm_rows, 1>(a, rows, row_stride, step_stride, steps, b + column, b_stride,
                                c.data + column, c.stride, c.columns - column);
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

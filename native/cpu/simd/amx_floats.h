// AMX: the same floats as AVX-512 with BF16 and VNNI; products of whole tiles are in amx_tiles.h.
#pragma once

#include "avx512_bf16_floats.h"

#define TESSERAL_TILES

namespace tesseral::TESSERAL_TARGET {
namespace {

// 2^x to a relative 2.7e-6, for numbers that are rounded to bfloat16, and -infinity.
inline Floats exp2_roughly(Floats x) {
  const Floats fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Floats sum = broadcast(exp2_rough_coefficients[exp2_rough_degree]);
  for (int i = exp2_rough_degree - 1; i >= 0; --i) {
    sum = multiply_add(sum, fraction, broadcast(exp2_rough_coefficients[i]));
  }
  return _mm512_scalef_ps(sum, x);
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

// Heads of tokens times a matrix, and then as codes with a scale and an offset for each head.
#pragma once

#include <cstdint>

#include "tesseral/quantize_rows.h"

namespace tesseral {

// Heads are a multiple of so many elements: whole vectors on every target.
constexpr std::int64_t head_rows_multiple = 16;

// Elements (or bytes of codes) from one batch row, one head and one token to the next.
struct HeadSteps {
  std::int64_t batch = 0;
  std::int64_t head = 0;
  std::int64_t token = 0;
};

// One call. A head x of `dim` elements becomes y = round(x factor), to the type of the rows. With
// low = min(y) * clip[0], high = max(y) * clip[1] and both within float16,
//   offset = float16(low),  scale = float16(max((high - offset) / (2^bits - 1), 2^-14)),
//   codes = clamp(round((y - offset) / scale), 0, 2^bits - 1), ties to even,
// packed in the next width of 2, 4 and 8 bits, the first code in the lowest bits.
struct HeadRows {
  RowElement element = RowElement::f32;
  std::int64_t batch = 0;
  std::int64_t heads = 0;
  std::int64_t tokens = 0;
  std::int64_t dim = 0;
  const void* rows = nullptr;
  HeadSteps row_steps;
  // Rotary embedding before all else, or null: dim is then a multiple of twice as many, and
  //   x = round(round(x * cosine) + round(turned(x) * sine)), turned(x) = (-second half, first
  //   half)
  const void* cosine = nullptr;  // of the type of the rows
  const void* sine = nullptr;
  HeadSteps rotary_steps;         // of both
  const float* factor = nullptr;  // [dim, dim], or null for the identity
  // Where y goes if it is not coded.
  void* out = nullptr;
  HeadSteps out_steps;
  // Where codes go if `out` is null.
  const float* clip = nullptr;  // [2]
  int bits = 0;                 // 2 to 8
  std::uint8_t* codes = nullptr;
  HeadSteps code_steps;
  std::uint16_t* scale = nullptr;
  std::uint16_t* offset = nullptr;
  HeadSteps scale_steps;  // of both
};

struct HeadRowsKernels {
  // Floats of scratch memory for one worker.
  std::int64_t (*scratch)(const HeadRows& call);
  // Heads [begin, end), counted with tokens fastest and batch rows slowest.
  Status (*run)(const HeadRows& call, std::int64_t begin, std::int64_t end, float* scratch);
};

}  // namespace tesseral

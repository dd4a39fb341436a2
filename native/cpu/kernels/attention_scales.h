// What keys and values of codes need that are multiplied as integers, of whatever width: the scales
// of a run, and the step between the integers that stand for floats.
#pragma once

#include "kernels/attention_rows.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

// What turns floats of magnitude up to `largest` into integers, and back.
struct Steps {
  float per_unit;
  float step;

  static Steps of(float largest, float largest_integer) {
    if (!(largest > 0) || largest == infinity) return {0, largest == infinity ? largest : 0};
    return {largest_integer / largest, largest / largest_integer};
  }
};

// The largest magnitude of a row that is padded with zeros to whole vectors, or NaN if it has one.
inline float largest_of(const float* row, int64_t count) {
  Floats top = zero();
  Floats sum = zero();
  for (int64_t i = 0; i < count; i += lanes) {
    const Floats size = magnitude(load(row + i));
    top = larger(top, size);
    sum = add(sum, size);
  }
  const float total = sum_lanes(sum);  // of sizes: NaN only from NaN
  return total != total ? total : largest_lane(top);
}

inline int flip_of(const KeyValueRows& source) {
  if (source.offset.data != nullptr) return 0;
  return source.element == Element::bits4 ? 0x88 : 0x80;
}

inline bool multiplies_codes(const KeyValueRows& source) {
  return source.element == Element::bits8 || source.element == Element::bits4;
}

// Scales and offsets of consecutive rows as float32.
inline void load_scales(const KeyValueRows& source, const KeyRun& run, int64_t head, float* scales,
                        float* offsets) {
  const auto load_all = [&](const Rows& rows, float* out) {
    const char* p = row_of(rows, run.batch, head, run.row);
    int64_t i = 0;
    if (rows.row == bytes_of(source.scale_element)) {
      for (; i + lanes <= run.count; i += lanes) {
        store(out + i, load_lanes(source.scale_element, p + i * rows.row));
      }
    }
    for (; i < run.count; ++i) out[i] = load_one(source.scale_element, p + i * rows.row);
    for (; i < round_up(run.count, lanes); ++i) out[i] = 0;
  };
  load_all(source.scale, scales);
  if (source.offset.data != nullptr) return load_all(source.offset, offsets);
  const auto half = static_cast<float>(1 << (bits_of(source.element) - 1));
  for (int64_t i = 0; i < run.count; i += lanes) {
    store(offsets + i, multiply(load(scales + i), broadcast(-half)));
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

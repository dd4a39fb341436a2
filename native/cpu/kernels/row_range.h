// What the codes of a transformed row depend on.
#pragma once

#include "kernels/small_products.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

// What the range of a row is, and whether all of it is finite.
struct Range {
  float low;
  float high;
  float poison;  // 0, or NaN
};

struct Bounds {
  Floats low = broadcast(__builtin_huge_valf());
  Floats high = broadcast(-__builtin_huge_valf());
  Floats poison = zero();

  void add(Floats x) {
    low = lesser(low, x);
    high = larger(high, x);
    poison = multiply_add(x, zero(), poison);
  }
  Range range() const {
    return {-largest_lane(subtract(zero(), low)), largest_lane(high), sum_lanes(poison)};
  }
};

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

// Whether this machine multiplies pairs of bfloat16 faster than float32.
#pragma once

#include "dispatch.h"

namespace tesseral {

// Whether pairs of bfloat16 products come faster than products of float32; measured once.
bool pairs_pay(const Target& target);

}  // namespace tesseral

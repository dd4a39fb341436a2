// AMX: the bytes of AVX-512 with BF16 and VNNI; tiles multiply signed ones.
#pragma once

#include "avx512_bf16.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

// Signed nibbles of each byte.
inline Bytes signed_low_nibbles(Bytes x) {
  return _mm512_sub_epi8(low_nibbles(x), _mm512_set1_epi8(8));
}
inline Bytes signed_high_nibbles(Bytes x) { return signed_low_nibbles(_mm512_srli_epi16(x, 4)); }

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

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

// The signed nibbles number `Place` and `Place` + 1, of eight, of each lane, as a pair of bfloat16.
template <int Place>
inline Bytes nibble_pairs(Ints x) {
  static_assert(Place % 2 == 0, "two nibbles of a byte");
  // -8 to 7 as bfloat16, at their codes; of an index, the low five bits count
  const __m512i codes = _mm512_broadcast_i64x4(
      _mm256_set_epi16(-0x4080, -0x4000, -0x3FC0, -0x3F80, -0x3F60, -0x3F40, -0x3F20, -0x3F00,
                       0x40E0, 0x40C0, 0x40A0, 0x4080, 0x4040, 0x4000, 0x3F80, 0));
  const __m512i first = _mm512_srli_epi32(x, 4 * Place);
  // the second comes to bits 16 to 19
  __m512i second;
  if constexpr (Place < 4) {
    second = _mm512_slli_epi32(x, 12 - 4 * Place);
  } else {
    second = _mm512_srli_epi32(x, 4 * Place - 12);
  }
  return _mm512_permutexvar_epi16(_mm512_mask_blend_epi16(0xAAAAAAAA, first, second), codes);
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

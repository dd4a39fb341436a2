// The same operations in plain C++, 16 bytes at a time: what any machine can run.
#pragma once

#include <cstdint>

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr std::int64_t vector_bytes = 16;
constexpr int row_block = 1;

struct Bytes {
  std::uint8_t lane[16];
};
struct Words {
  std::int16_t lane[16];
};
struct Ints {
  std::int32_t lane[4];
};

inline Words zero_words() { return {}; }
inline Ints zero_ints() { return {}; }

// The first `count` <= 16 bytes, then zeros; reads nothing past them.
inline Bytes load_partial(const void* p, std::int64_t count) {
  Bytes x = {};
  for (std::int64_t i = 0; i < count; ++i) x.lane[i] = static_cast<const std::uint8_t*>(p)[i];
  return x;
}
inline Bytes load(const void* p) {
  Bytes x;
  for (int i = 0; i < 16; ++i) x.lane[i] = static_cast<const std::uint8_t*>(p)[i];
  return x;
}
inline void store(void* p, Bytes x) {
  for (int i = 0; i < 16; ++i) static_cast<std::uint8_t*>(p)[i] = x.lane[i];
}

// Signed nibbles of each byte, plus 8.
inline Bytes low_nibbles(Bytes x) {
  for (int i = 0; i < 16; ++i) x.lane[i] = static_cast<std::uint8_t>((x.lane[i] & 15) ^ 8);
  return x;
}
inline Bytes high_nibbles(Bytes x) {
  for (int i = 0; i < 16; ++i) x.lane[i] = static_cast<std::uint8_t>((x.lane[i] >> 4) ^ 8);
  return x;
}

// sum + products, unsigned times signed, in 16 bits; one lane a product where vector machines pair.
inline Words add_products(Words sum, Bytes unsigned_bytes, Bytes signed_bytes) {
  for (int i = 0; i < 16; ++i) {
    const int product = unsigned_bytes.lane[i] * static_cast<std::int8_t>(signed_bytes.lane[i]);
    sum.lane[i] = static_cast<std::int16_t>(sum.lane[i] + product);
  }
  return sum;
}

// sum + words, in 32 bits.
inline Ints add_widened(Ints sum, Words words) {
  for (int i = 0; i < 4; ++i) {
    sum.lane[i] += words.lane[i] + words.lane[i + 4] + words.lane[i + 8] + words.lane[i + 12];
  }
  return sum;
}

// totals[i] = sum of the lanes of x[i], minus offset.
inline void reduce4(const Ints (&x)[4], std::int32_t offset, std::int32_t* totals) {
  for (int i = 0; i < 4; ++i) {
    totals[i] = x[i].lane[0] + x[i].lane[1] + x[i].lane[2] + x[i].lane[3] - offset;
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

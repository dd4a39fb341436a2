// The same integer operations in plain C++, 16 bytes at a time: what any
// machine can run.
#pragma once

#include <cstdint>
#include <cstring>

#include "scalar_floats.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr std::int64_t vector_bytes = 16;
constexpr int stream_rows = 1;
constexpr int panel_rows = 2;
constexpr int tile_vectors = 4;
constexpr std::int64_t panel_block = 8192;  // of k

struct Bytes {
  std::uint8_t lane[16];
};
struct Ints {
  std::int32_t lane[4];
};
using Words = Ints;  // nothing to widen

inline Ints broadcast_int(std::int32_t x) { return {{x, x, x, x}}; }
inline Ints zero_ints() { return broadcast_int(0); }
// Modulo 2^32, as vector machines add.
inline Ints add_ints(Ints a, Ints b) {
  for (int i = 0; i < 4; ++i) {
    a.lane[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(a.lane[i]) +
                                          static_cast<std::uint32_t>(b.lane[i]));
  }
  return a;
}
inline Ints load_ints(const std::int32_t* p) {
  Ints x;
  for (int i = 0; i < 4; ++i) x.lane[i] = p[i];
  return x;
}
inline void store_ints(std::int32_t* p, Ints x) {
  for (int i = 0; i < 4; ++i) p[i] = x.lane[i];
}

// The first `count` <= 16 bytes, then zeros; reads nothing past them.
inline Bytes load_some_bytes(const void* p, std::int64_t count) {
  Bytes x = {};
  for (std::int64_t i = 0; i < count; ++i) x.lane[i] = static_cast<const std::uint8_t*>(p)[i];
  return x;
}
inline Bytes load_bytes(const void* p) {
  Bytes x;
  for (int i = 0; i < 16; ++i) x.lane[i] = static_cast<const std::uint8_t*>(p)[i];
  return x;
}
inline void store_bytes(void* p, Bytes x) {
  for (int i = 0; i < 16; ++i) static_cast<std::uint8_t*>(p)[i] = x.lane[i];
}
// The same four bytes in every lane of 32 bits.
inline Bytes broadcast_quad(const void* p) {
  Bytes x;
  for (int i = 0; i < 16; ++i) x.lane[i] = static_cast<const std::uint8_t*>(p)[i % 4];
  return x;
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
// The bytes of a and b in turns, of the first and of the last 8 bytes.
inline Bytes interleave(const std::uint8_t* a, const std::uint8_t* b) {
  Bytes x;
  for (int i = 0; i < 16; ++i) x.lane[i] = i % 2 == 0 ? a[i / 2] : b[i / 2];
  return x;
}
inline Bytes interleave_first(Bytes a, Bytes b) { return interleave(a.lane, b.lane); }
inline Bytes interleave_last(Bytes a, Bytes b) { return interleave(a.lane + 8, b.lane + 8); }

// Sums of products: unsigned bytes, at most 15, times signed ones; four to a
// lane.
constexpr bool words_are_ints = true;
inline Words zero_words() { return zero_ints(); }
inline Words add_words(Words a, Words b) { return add_ints(a, b); }
inline Words add_products(Words sum, Bytes unsigned_bytes, Bytes signed_bytes) {
  Ints products;
  for (int i = 0; i < 4; ++i) {
    std::int32_t total = 0;
    for (int j = 4 * i; j < 4 * i + 4; ++j) {
      total += unsigned_bytes.lane[j] * static_cast<std::int8_t>(signed_bytes.lane[j]);
    }
    products.lane[i] = total;
  }
  return add_ints(sum, products);
}
inline Ints add_widened(Ints sum, Words words) { return add_ints(sum, words); }

// totals[i] = sum of the lanes of x[i].
inline void reduce4(const Ints (&x)[4], std::int32_t* totals) {
  for (int i = 0; i < 4; ++i) {
    const Ints pairs = add_ints(x[i], {{x[i].lane[2], x[i].lane[3], 0, 0}});
    totals[i] = add_ints(pairs, {{pairs.lane[1], 0, 0, 0}}).lane[0];
  }
}

inline Floats to_floats(Ints x) {
  return each([&](int i) { return static_cast<float>(x.lane[i]); });
}
// The same bits.
inline Floats as_floats(Bytes x) {
  Floats y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline Bytes as_bytes(Floats x) {
  Bytes y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline Ints as_ints(Bytes x) {
  Ints y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
// The signed nibble number `Place`, of eight, of each lane.
template <int Place>
inline Floats nibble_floats(Ints x) {
  return each([&](int i) {
    const auto nibble =
        static_cast<std::int32_t>(static_cast<std::uint32_t>(x.lane[i]) >> (4 * Place) & 15u);
    return static_cast<float>((nibble ^ 8) - 8);
  });
}

// Lane i of the result is x[i / width], with width a power of two; x[0 ..
// count) are read.
inline Floats spread(const float* x, int count, int width_log2) {
  return each([&](int i) { return i >> width_log2 < count ? x[i >> width_log2] : 0.0f; });
}

inline Floats lesser(Floats a, Floats b) {
  return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// The first `count` <= lanes, each to the nearest integer, ties to even; all within int8.
inline void store_rounded(std::int8_t* p, Floats x, int count) {
  // where a float32 has no room for fractions
  constexpr float whole = 12582912.0f;
  for (int i = 0; i < count; ++i) p[i] = static_cast<std::int8_t>((x.lane[i] + whole) - whole);
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

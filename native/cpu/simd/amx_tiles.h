// AMX: eight registers, each a tile of up to 16 rows of 64 bytes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int tile_rows = 16;
constexpr int tile_bytes = 64;  // of a row: 16 floats or integers, 32 bfloat16, 64 bytes

// Gives this thread all eight registers as whole tiles, and frees them at the end: a thread that
// keeps them pays for them whenever the system switches it.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) Config {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t unused[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    static_assert(sizeof(Config) == 64);
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = tile_bytes;
      config.rows[i] = tile_rows;
    }
    // GCC's intrinsic says that it reads the first 8 bytes alone
    __asm__ volatile("" : : "m"(config));
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

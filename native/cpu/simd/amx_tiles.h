// AMX: eight registers, each a tile of up to 16 rows of 64 bytes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int tile_rows = 16;
constexpr int tile_bytes = 64;  // of a row: 16 floats or integers, 32 bfloat16, 64 bytes

// Tells the compiler that tiles read memory: GCC 12 does not know it of its own intrinsics, and
// would let what was written before wait until after them.
inline void tiles_read_memory() { __asm__ volatile("" ::: "memory"); }

// What a register holds.
struct TileShape {
  int rows = tile_rows;
  int bytes = tile_bytes;  // of a row
};

// Gives this thread all eight registers, as whole tiles or in these shapes, and frees them at the
// end: a thread that keeps them pays for them whenever the system switches it.
class Tiles {
 public:
  Tiles() : Tiles({}, {}, {}, {}, {}, {}, {}, {}) {}
  Tiles(TileShape t0, TileShape t1, TileShape t2, TileShape t3, TileShape t4, TileShape t5,
        TileShape t6, TileShape t7) {
    struct alignas(64) Config {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t unused[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    static_assert(sizeof(Config) == 64);
    const TileShape shapes[8] = {t0, t1, t2, t3, t4, t5, t6, t7};
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = static_cast<std::uint16_t>(shapes[i].bytes);
      config.rows[i] = static_cast<std::uint8_t>(shapes[i].rows);
    }
    tiles_read_memory();
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

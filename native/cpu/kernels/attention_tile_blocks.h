// Keys, values and queries as tiles of bfloat16 pairs, and products of tiles.
//
// A product of tiles takes 16 rows of 32 numbers, and 16 columns of 32 numbers as pairs: row r of
// that tile holds, for each column, the numbers 2 r and 2 r + 1. A packed tile fills 1 KiB, and
// tiles lie in the order in which a product reads them.
#pragma once

#include "kernels/attention_packed.h"

#if defined(TESSERAL_TILES)

#include "simd/amx_tiles.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int64_t tile_words = tile_rows * lanes;  // of 32 bits
constexpr int64_t tile_step = 2 * lanes;           // numbers that a product sums over
constexpr int group_rows = 2 * tile_rows;          // rows that are multiplied together
static_assert(tile_rows == lanes && panel == group_rows, "a tile is as wide as it is high");

inline int64_t tile_steps(int64_t n) { return (n + tile_step - 1) / tile_step; }

// Between tile instructions: what x is has been computed when it comes here.
inline void keep_order(Floats& x) { __asm__ volatile("" : "+v"(x)); }
// Sanitizers do not see what tile instructions touch.
inline const float* readable(const float* p, [[maybe_unused]] int64_t stride) {
#if defined(__SANITIZE_ADDRESS__)
  for (int r = 0; r < tile_rows; ++r) {
    for (int i = 0; i < lanes; ++i) (void)*static_cast<const volatile float*>(p + r * stride + i);
  }
#endif
  return p;
}
#define TESSERAL_LOAD_TILE(tile, p, stride) _tile_loadd(tile, readable(p, stride), 4 * (stride))
#define TESSERAL_STORE_TILE(tile, p, stride) \
  _tile_stored(tile, const_cast<float*>(readable(p, stride)), 4 * (stride))

// Stores the tile of the product before, and starts it for the present one.
#define TESSERAL_BEGIN_TILE(tile, row, column)                                                   \
  {                                                                                              \
    if (complete_ != nullptr) {                                                                  \
      TESSERAL_STORE_TILE(tile, complete_->out + (row) * complete_->stride + (column),           \
                          complete_->stride);                                                    \
    }                                                                                            \
    if (product.adds) {                                                                          \
      TESSERAL_LOAD_TILE(tile, product.out + (row) * product.stride + (column), product.stride); \
    } else {                                                                                     \
      _tile_zero(tile);                                                                          \
    }                                                                                            \
  }

// Tiles of rows: where the first begins, and words from row to row and from step to step.
struct TileRows {
  const float* first;
  int64_t stride;
  int64_t along;

  const float* at(int64_t tile, int64_t step) const {
    return first + tile * tile_rows * stride + step * along;
  }
};

// A product of tiles: 32 rows, and 32 columns or 16.
struct TileProduct {
  TileRows a;
  const float* b;  // of each step two tiles, or one
  int64_t steps;
  float* out;
  int64_t stride;
  bool narrow;  // 16 columns
  bool adds;    // to what is there
};

inline void nothing_beside(int) {}
// What is called between tile instructions keeps its numbers in registers only if it is inlined.
#define TESSERAL_INLINE __attribute__((always_inline)) inline

// Products that are worked off step by step, so that the tile unit finds work while vectors are
// computed with. A chip looks only a few tile loads ahead, so these turn to one another within a
// step: `beside(0)` to `beside(3)` are called between its products. For the same reason a sum is
// stored when the next one needs its tile, and not while it is still being computed.
class TileQueue {
 public:
  void push(const TileProduct& product) {
    products_[n_products_++] = product;
    steps_ += product.steps;
  }
  int64_t steps() const { return steps_; }

  template <class Beside>
  TESSERAL_INLINE void advance(const Beside& beside) {
    if (at_ == n_products_) {
      for (int part = 0; part < 4; ++part) beside(part);
      return;
    }
    const TileProduct& product = products_[at_];
    product.narrow ? narrow_step(product, beside) : wide_step(product, beside);
    if (++step_ < product.steps) return;
    complete_ = &product;
    step_ = 0;
    ++at_;
  }
  // Works off all that is left.
  void finish() {
    tiles_read_memory();
    while (at_ < n_products_) advance(nothing_beside);
    store_complete();
    n_products_ = at_ = 0;
    steps_ = 0;
  }

 private:
  template <class Beside>
  TESSERAL_INLINE void wide_step(const TileProduct& product, const Beside& beside) {
    const float* b = product.b + 2 * step_ * tile_words;
    const bool begins = step_ == 0;
    if (begins && complete_ != nullptr && complete_->narrow) store_complete();
    TESSERAL_LOAD_TILE(6, b, lanes);
    TESSERAL_LOAD_TILE(4, product.a.at(0, step_), product.a.stride);
    if (begins) TESSERAL_BEGIN_TILE(0, 0, 0);
    _tile_dpbf16ps(0, 4, 6);
    beside(0);
    TESSERAL_LOAD_TILE(7, b + tile_words, lanes);
    if (begins) TESSERAL_BEGIN_TILE(1, 0, lanes);
    _tile_dpbf16ps(1, 4, 7);
    beside(1);
    TESSERAL_LOAD_TILE(5, product.a.at(1, step_), product.a.stride);
    if (begins) TESSERAL_BEGIN_TILE(2, tile_rows, 0);
    _tile_dpbf16ps(2, 5, 6);
    beside(2);
    if (begins) TESSERAL_BEGIN_TILE(3, tile_rows, lanes);
    _tile_dpbf16ps(3, 5, 7);
    beside(3);
    if (begins) complete_ = nullptr;
  }

  template <class Beside>
  TESSERAL_INLINE void narrow_step(const TileProduct& product, const Beside& beside) {
    const bool begins = step_ == 0;
    if (begins) store_complete();
    TESSERAL_LOAD_TILE(6, product.b + step_ * tile_words, lanes);
    TESSERAL_LOAD_TILE(4, product.a.at(0, step_), product.a.stride);
    if (begins) TESSERAL_BEGIN_TILE(0, 0, 0);
    _tile_dpbf16ps(0, 4, 6);
    beside(0);
    beside(1);
    TESSERAL_LOAD_TILE(5, product.a.at(1, step_), product.a.stride);
    if (begins) TESSERAL_BEGIN_TILE(2, tile_rows, 0);
    _tile_dpbf16ps(2, 5, 6);
    beside(2);
    beside(3);
  }

  void store_complete() {
    if (complete_ == nullptr) return;
    float* out = complete_->out;
    const int64_t stride = complete_->stride;
    TESSERAL_STORE_TILE(0, out, stride);
    TESSERAL_STORE_TILE(2, out + tile_rows * stride, stride);
    if (!complete_->narrow) {
      TESSERAL_STORE_TILE(1, out + lanes, stride);
      TESSERAL_STORE_TILE(3, out + tile_rows * stride + lanes, stride);
    }
    complete_ = nullptr;
  }

  static constexpr int64_t most = (attention_max_dim + attention_max_key_block) / panel + 2;
  TileProduct products_[most];
  int64_t n_products_ = 0;
  int64_t steps_ = 0;                      // of all products
  int64_t at_ = 0;                         // the product that is worked on
  int64_t step_ = 0;                       // and its next step
  const TileProduct* complete_ = nullptr;  // whose sums are still in their tiles
};

#undef TESSERAL_BEGIN_TILE
#undef TESSERAL_LOAD_TILE
#undef TESSERAL_STORE_TILE

// Words [word, word + lanes) of each of `n_rows` rows, zeros in other rows and past their ends.
inline void load_words(const KeyValueRows& source, const char* const* rows, int n_rows,
                       int64_t word, Floats (&block)[lanes]) {
  if (n_rows == lanes && 2 * (word + lanes) <= source.width) {
    for (int i = 0; i < lanes; ++i) {
      block[i] = load(reinterpret_cast<const float*>(rows[i]) + word);
    }
    return;
  }
  for (int i = 0; i < lanes; ++i) {
    block[i] = i < n_rows ? row_words<true>(source, rows[i], nullptr, word) : zero();
  }
}

// Packs queries [row, row + 32): two tiles for every step along the head dimension.
inline void pack_query_tiles(const AttentionCall& call, const AttentionTask& task, int64_t row,
                             float* out) {
  const Sequence& sequence = call.sequences[task.sequence];
  const KeyValueRows source = {call.element, call.key.width, call.query, Element::f32, {}, {}};
  const int64_t n_rows = rows_of(call, task) - row;
  RowWalk walk(call, task, row);
  for (int64_t first = 0; first < group_rows; first += tile_rows) {
    const char* rows[tile_rows];
    const auto here = static_cast<int>(at_least(0, at_most(tile_rows, n_rows - first)));
    for (int r = 0; r < here; ++r) {
      const Row place = walk.next();
      rows[r] = row_of(call.query, sequence.batch, place.head, sequence.q_start + place.query);
      prefetch(rows[r] + tile_rows * call.query.row, row_bytes(source));
    }
    for (int64_t step = 0; step < tile_steps(source.width); ++step) {
      Floats block[lanes];
      load_words(source, rows, here, step * lanes, block);
      float* tile = out + step * 2 * tile_words + first * lanes;
      for (int i = 0; i < lanes; ++i) store(tile + i * lanes, block[i]);
    }
  }
}

// Packs keys [begin, end), 32 at a time: for every step along the head dimension two tiles of
// pairs, a key in each column.
inline void pack_key_tiles(const AttentionCall& call, const AttentionTask& task, int64_t begin,
                           int64_t end, float* out) {
  const Sequence& sequence = call.sequences[task.sequence];
  const KeyValueRows& source = call.key;
  const int64_t steps = tile_steps(source.width);
  for (int64_t first = 0; first < round_up(end - begin, panel); first += lanes) {
    const char* rows[lanes];
    const auto n_rows = static_cast<int>(at_least(0, at_most(lanes, end - begin - first)));
    for (int i = 0; i < n_rows; ++i) {
      const KeyRun run = find_keys(call, sequence, begin + first + i, end);
      rows[i] = row_of(source.rows, run.batch, task.kv_head, run.row);
      if (sequence.blocks == nullptr) {
        prefetch(rows[i] + lanes * source.rows.row, row_bytes(source));
      }
    }
    float* tiles = out + first / panel * (2 * steps * tile_words) + first % panel * lanes;
    for (int64_t step = 0; step < steps; ++step) {
      Floats block[lanes];
      load_words(source, rows, n_rows, step * lanes, block);
      transpose(block);
      for (int i = 0; i < lanes; ++i) store(tiles + i * lanes, block[i]);
      tiles += 2 * tile_words;
    }
  }
}

// Where the tiles of values of columns [column, column + 32) begin, of `steps` for a column.
inline int64_t value_tiles(int64_t column, int64_t steps) {
  return column / lanes * steps * tile_words;
}
inline bool is_narrow(int64_t width, int64_t column) { return column + lanes >= width; }

// Writes columns [column, column + 16) of two keys as pairs.
inline void pack_pairs(const std::uint16_t* const (&keys)[2], int64_t column, int64_t width,
                       float* out) {
  if (column + lanes <= width) {
    store(out, interleave_bf16(keys[0] + column, keys[1] + column));
    return;
  }
  std::uint16_t part[2][lanes] = {};
  const auto bytes = static_cast<std::size_t>(2 * (width - column));
  for (int i = 0; i < 2; ++i) std::memcpy(part[i], keys[i] + column, bytes);
  store(out, interleave_bf16(part[0], part[1]));
}

// Packs values [begin, end): for every two tiles of columns, or a last one, tiles of pairs of keys,
// 32 keys at a step.
inline void pack_value_tiles(const AttentionCall& call, const AttentionTask& task, int64_t begin,
                             int64_t end, float* out) {
  const Sequence& sequence = call.sequences[task.sequence];
  const KeyValueRows& source = call.value;
  const int64_t steps = tile_steps(end - begin);
  alignas(64) const std::uint16_t nothing[attention_max_dim] = {};
  for (int64_t key = 0; key < steps * tile_step; key += 2) {
    const std::uint16_t* pair[2] = {nothing, nothing};
    for (int i = 0; i < 2 && begin + key + i < end; ++i) {
      const KeyRun run = find_keys(call, sequence, begin + key + i, end);
      const char* row = row_of(source.rows, run.batch, task.kv_head, run.row);
      if (sequence.blocks == nullptr) prefetch(row + lanes * source.rows.row, row_bytes(source));
      pair[i] = reinterpret_cast<const std::uint16_t*>(row);
    }
    const int64_t step = key / tile_step;
    const int64_t row = key % tile_step / 2 * lanes;
    for (int64_t column = 0; column < source.width; column += panel) {
      float* p = out + value_tiles(column, steps) + row;
      if (is_narrow(source.width, column)) {
        pack_pairs(pair, column, source.width, p + step * tile_words);
      } else {
        p += 2 * step * tile_words;
        pack_pairs(pair, column, source.width, p);
        pack_pairs(pair, column + lanes, source.width, p + tile_words);
      }
    }
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

#endif

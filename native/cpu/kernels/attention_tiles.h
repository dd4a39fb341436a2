// Attention with packed keys by products of whole tiles (AMX), for many rows of bfloat16.
//
// Level 1 is that of attention_packed.h: a strip of queries meets a block of keys and values that
// is packed once for all of them and stays in the L2 cache. Level 2 is 32 rows and 32 columns, four
// tiles of sums. The scores of 32 rows against a block stay in the L1 cache.
//
// The limit of a row follows its largest score only where that is 2^slack_log2 times larger as a
// weight, so that what is summed is seldom scaled: weights are at most that, and their rounding is
// relative.
#pragma once

#include "kernels/attention_tile_blocks.h"

#if defined(TESSERAL_TILES)

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr float slack_log2 = 8;

// The memory of a task, cut up.
struct TileSpace {
  int64_t score_stride;  // an odd number of lines, so that rows spread over the L1 cache
  float* queries;
  float* keys;
  float* values;
  float* scores;
  float* state;

  TileSpace(const AttentionCall& call, float* memory)
      : score_stride(round_up(call.key_block, panel) + lanes) {
    const int64_t key_words = tile_steps(call.key.width) * lanes;
    const int64_t block = round_up(call.key_block, panel);
    queries = memory;
    keys = queries + round_up(call.strip_rows, group_rows) * key_words;
    values = keys + block * key_words;
    scores = values + block / 2 * round_up(call.value.width, lanes);
    state = scores + group_rows * score_stride;
  }
  static int64_t floats(const AttentionCall& call) {
    const TileSpace laid(call, nullptr);
    return (laid.state - static_cast<float*>(nullptr)) + state_floats(call, call.strip_rows);
  }
  // Sums are stored by whole groups.
  static int64_t state_floats(const AttentionCall& call, int64_t rows) {
    const int64_t stride = round_up(call.value.width, lanes);
    return State::floats(call, rows) + (round_up(rows, group_rows) - rows) * stride;
  }
};

class TiledTask {
 public:
  TiledTask(const AttentionCall& call, const AttentionTask& task, float* scratch)
      : call_(call),
        task_(task),
        space_(call, scratch),
        rows_(rows_of(call, task)),
        state_(call, task.state != nullptr ? task.state : space_.state, rows_),
        adjusts_(adjusts_scores(call)),
        unit_(unit_of(call)) {}

  void run() {
    const Tiles tiles;
    state_.start(rows_);
    for (int64_t row = 0; row < rows_; row += group_rows) {
      pack_query_tiles(call_, task_, row, queries_of(row));
    }
    const KeyRange keys = visible_keys(call_, task_);
    for (begin_ = keys.begin; begin_ < keys.end; begin_ = end_) {
      end_ = at_most(begin_ + call_.key_block, keys.end);
      pack_key_tiles(call_, task_, begin_, end_, space_.keys);
      pack_value_tiles(call_, task_, begin_, end_, space_.values);
      Ahead ahead = after_block(call_, task_, end_, keys.end);
      for (int64_t row = 0; row < rows_; row += group_rows) {
        ahead.reach(row + group_rows, rows_);
        run_group(row);
      }
    }
    state_.finish(rows_);
    if (task_.state == nullptr) write_output(call_, task_, state_);
  }

 private:
  float* queries_of(int64_t row) const {
    return space_.queries + row * tile_steps(call_.key.width) * lanes;
  }

  // Rows [row, row + group_rows) against the packed block.
  void run_group(int64_t row) {
    Group<group_rows> group;
    find_group(call_, task_, row, rows_, {begin_, end_}, group);
    if (!group.sees_keys()) return;
    score(row, group.from, group.to);
    bool fresh = true;  // whether nothing has been summed yet
    for (int r = 0; r < group.n_rows; ++r) fresh = fresh && state_.sum[row + r] == 0;
    for (int r = 0; r < group.n_rows; ++r) weigh(group, r, row, fresh);
    add_values(row, group.from, group.to, fresh);
  }

  void score(int64_t row, int64_t from, int64_t to) {
    const int64_t steps = tile_steps(call_.key.width);
    const TileRows queries = {queries_of(row), lanes, 2 * tile_words};
    settle_memory();
    for (int64_t key = from; key < to; key += panel) {
      const float* keys = space_.keys + key * steps * lanes;
      TileSums::clear();
      for (int64_t step = 0; step < steps; ++step) TileSums::add(queries, keys, step);
      TileSums::store(space_.scores + key - from, space_.score_stride);
    }
  }

  // Turns the scores of a row into weights, and scales what it has summed as they need it.
  void weigh(const Group<group_rows>& group, int r, int64_t first, bool fresh) {
    const Row& row = group.rows[r];
    const int64_t begin = begin_ + group.from;
    const int64_t end = begin_ + group.to;
    const int64_t count = round_up(end - begin, panel);
    float* scores = space_.scores + r * space_.score_stride;
    if (adjusts_) adjust_scores(call_, task_, row, scores - begin, begin, end);
    if (group.hides) {
      const Row seen = {row.head, row.query, row.k_begin, at_most(row.k_end, end)};
      hide_scores(seen, scores - begin, begin, begin + count);
    }
    float& limit = state_.limit[first + r];
    float& sum = state_.sum[first + r];
    const float factor = raise_limit(scores, count, unit_, &limit);
    if (!fresh && (factor != 1 || sum == 0)) scale_values(first + r, sum == 0 ? 0 : factor);
    sum = sum * factor +
          exponentiate<true>(scores, count, unit_, take_limit(scores, count, unit_, limit));
  }

  void scale_values(int64_t row, float factor) {
    float* values = state_.values + row * state_.stride;
    const Floats by = broadcast(factor);
    for (int64_t i = 0; i < state_.stride; i += lanes) {
      store(values + i, factor == 0 ? zero() : multiply(load(values + i), by));
    }
  }

  void add_values(int64_t row, int64_t from, int64_t to, bool fresh) {
    settle_memory();
    for (int64_t column = 0; column < call_.value.width; column += panel) {
      if (is_narrow(call_.value.width, column)) {
        add_columns<NarrowTileSums, 1>(row, column, from, to, fresh);
      } else {
        add_columns<TileSums, 2>(row, column, from, to, fresh);
      }
    }
  }

  template <class Sums, int Columns>
  void add_columns(int64_t row, int64_t column, int64_t from, int64_t to, bool fresh) {
    const TileRows weights = {space_.scores, space_.score_stride, lanes};
    const float* values = space_.values + value_tiles(column, tile_steps(end_ - begin_)) +
                          from / tile_step * Columns * tile_words;
    float* out = state_.values + row * state_.stride + column;
    fresh ? Sums::clear() : Sums::load(out, state_.stride);
    for (int64_t step = 0; step < tile_steps(to - from); ++step) Sums::add(weights, values, step);
    Sums::store(out, state_.stride);
  }

  const AttentionCall& call_;
  const AttentionTask& task_;
  TileSpace space_;
  int64_t rows_;
  State state_;
  bool adjusts_;
  float unit_;
  int64_t begin_ = 0;  // the packed block of keys
  int64_t end_ = 0;
};

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

#endif

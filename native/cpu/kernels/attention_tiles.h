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
  float* scores[2];
  float* state;

  TileSpace(const AttentionCall& call, float* memory)
      : score_stride(round_up(call.key_block, panel) + lanes) {
    const int64_t key_words = tile_steps(call.key.width) * lanes;
    const int64_t block = round_up(call.key_block, panel);
    queries = memory;
    keys = queries + round_up(call.strip_rows, group_rows) * key_words;
    values = keys + block * key_words;
    scores[0] = values + block / 2 * round_up(call.value.width, lanes);
    scores[1] = scores[0] + group_rows * score_stride;
    state = scores[1] + group_rows * score_stride;
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
        unit_(unit_of(call)),
        slack_(slack_log2 / unit_) {}

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
      run_block(after_block(call_, task_, end_, keys.end));
    }
    state_.finish(rows_);
    if (task_.state == nullptr) write_output(call_, task_, state_);
  }

 private:
  // Rows that have scores, in the memory of their own.
  struct Scored {
    Group<group_rows> group;
    int64_t row = 0;
    float* scores = nullptr;
    bool fresh = false;  // whether nothing has been summed yet
  };

  float* queries_of(int64_t row) const {
    return space_.queries + row * tile_steps(call_.key.width) * lanes;
  }

  // All rows against the packed block. While the weights of one group are computed, tiles add the
  // values of the group before and compute the scores of the next.
  void run_block(Ahead ahead) {
    Scored groups[3];
    Scored* before = nullptr;
    Scored* present = &groups[0];
    present->scores = space_.scores[0];
    if (!find_from(0, *present)) return;
    push_scores(*present);
    queue_.finish();
    for (int next = 1; present != nullptr; next = (next + 1) % 3) {
      if (before != nullptr) push_values(*before);
      // scores come into the memory of the group before, behind whose values they stand
      Scored* after = &groups[next];
      after->scores = space_.scores[present->scores == space_.scores[0]];
      if (!find_from(present->row + group_rows, *after)) after = nullptr;
      if (after != nullptr) push_scores(*after);
      weigh_group(*present, ahead);
      queue_.finish();
      before = present;
      present = after;
    }
    push_values(*before);
    queue_.finish();
    ahead.reach(1, 1);
  }

  // Finds the first group from a row on that sees some of the block.
  bool find_from(int64_t row, Scored& scored) const {
    for (; row < rows_; row += group_rows) {
      find_group(call_, task_, row, rows_, {begin_, end_}, scored.group);
      if (scored.group.sees_keys()) {
        scored.row = row;
        return true;
      }
    }
    return false;
  }

  void push_scores(const Scored& scored) {
    const int64_t steps = tile_steps(call_.key.width);
    const TileRows queries = {queries_of(scored.row), lanes, 2 * tile_words};
    const auto& group = scored.group;
    for (int64_t key = group.from; key < group.to; key += panel) {
      queue_.push({queries, space_.keys + key * steps * lanes, steps,
                   scored.scores + key - group.from, space_.score_stride, false, false});
    }
  }

  void push_values(const Scored& scored) {
    const TileRows weights = {scored.scores, space_.score_stride, lanes};
    const int64_t from = scored.group.from / tile_step;
    const int64_t steps = tile_steps(scored.group.to) - from;
    for (int64_t column = 0; column < call_.value.width; column += panel) {
      const bool narrow = is_narrow(call_.value.width, column);
      const float* values = space_.values + value_tiles(column, tile_steps(end_ - begin_)) +
                            from * (narrow ? 1 : 2) * tile_words;
      queue_.push({weights, values, steps, state_.values + scored.row * state_.stride + column,
                   state_.stride, narrow, !scored.fresh});
    }
  }

  void weigh_group(Scored& scored, Ahead& ahead) {
    const int n_rows = scored.group.n_rows;
    scored.fresh = true;
    for (int r = 0; r < n_rows; ++r) {
      scored.fresh = scored.fresh && state_.sum[scored.row + r] == 0;
    }
    tiles_read_memory();
    const int64_t all = queue_.steps();
    for (int r = 0; r < n_rows; ++r) {
      weigh(scored, r, all * (r + 1) / n_rows - all * r / n_rows);
    }
    ahead.reach(scored.row + group_rows, rows_);
  }

  // Turns the scores of a row into weights, and scales what it has summed as they need it; beside
  // that so many steps of the queue.
  void weigh(const Scored& scored, int r, int64_t steps) {
    const Group<group_rows>& group = scored.group;
    const Row& row = group.rows[r];
    const int64_t begin = begin_ + group.from;
    const int64_t end = begin_ + group.to;
    const int64_t count = round_up(end - begin, panel);
    float* scores = scored.scores + r * space_.score_stride;
    if (adjusts_) adjust_scores(call_, task_, row, scores - begin, begin, end);
    if (group.hides) {
      const Row seen = {row.head, row.query, row.k_begin, at_most(row.k_end, end)};
      hide_scores(seen, scores - begin, begin, begin + count);
    }
    const int64_t index = scored.row + r;
    float& limit = state_.limit[index];
    float& sum = state_.sum[index];
    const float factor = follow_limit(scores, count, &limit);
    if (!scored.fresh && (factor != 1 || sum == 0)) scale_values(index, sum == 0 ? 0 : factor);
    const float minus = take_limit(scores, count, unit_, limit);
    sum = sum * factor + exponentiate_beside(scores, count, minus, steps);
  }

  // Raises the limit of a row if its scores have grown by more than the slack; returns the factor
  // that the sums of the row so far take.
  float follow_limit(const float* scores, int64_t count, float* limit) const {
    Floats top[2] = {load(scores), load(scores + lanes)};
    for (int64_t i = panel; i < count; i += panel) {
      for (int j = 0; j < 2; ++j) top[j] = larger(top[j], load(scores + i + j * lanes));
    }
    const float largest = largest_lane(larger(top[0], top[1]));
    const float before = *limit;
    if (!(largest > before + slack_)) return 1;
    *limit = largest;
    return factor_between(before, largest, unit_);
  }

  // Weights in place of scores, as pairs, and their sum.
  float exponentiate_beside(float* scores, int64_t count, float limit, int64_t steps) {
    const Floats by = broadcast(unit_);
    const Floats minus = broadcast(-limit);
    Floats sum = zero();
    int64_t i = 0;
    for (; i + 4 * panel <= count && steps > 0; i += 4 * panel, --steps) {
      Floats sums[4];
      queue_.advance([&](int part) __attribute__((always_inline)) {
        sums[part] = weigh_two(scores, i + part * panel, by, minus);
      });
      sum = add(sum, add(add(sums[0], sums[1]), add(sums[2], sums[3])));
    }
    for (; i < count; i += panel) sum = add(sum, weigh_two(scores, i, by, minus));
    for (; steps > 0; --steps) queue_.advance(nothing_beside);
    return sum_lanes(sum);
  }

  // The weights of two vectors of scores, in the place of the first half of them; their sum.
  TESSERAL_INLINE static Floats weigh_two(float* scores, int64_t i, Floats by, Floats minus) {
    Floats weights[2];
    for (int j = 0; j < 2; ++j) {
      weights[j] = exp2_roughly(multiply_add(load(scores + i + j * lanes), by, minus));
    }
    store(scores + i / 2, narrow_to_pairs(weights[0], weights[1]));
    Floats sum = add(weights[0], weights[1]);
    keep_order(sum);
    return sum;
  }

  void scale_values(int64_t row, float factor) {
    float* values = state_.values + row * state_.stride;
    const Floats by = broadcast(factor);
    for (int64_t i = 0; i < state_.stride; i += lanes) {
      store(values + i, factor == 0 ? zero() : multiply(load(values + i), by));
    }
  }

  const AttentionCall& call_;
  const AttentionTask& task_;
  TileSpace space_;
  int64_t rows_;
  State state_;
  bool adjusts_;
  float unit_;
  float slack_;  // of limits
  TileQueue queue_;
  int64_t begin_ = 0;  // the packed block of keys
  int64_t end_ = 0;
};

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

#endif

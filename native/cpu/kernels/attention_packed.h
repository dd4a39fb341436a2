// Attention with packed keys, for many rows: two levels of tiles.
//
// Level 1, sized to the L2 cache: a strip of queries meets a block of keys and values that is
// packed once for all of them. Level 2, sized to the registers: a product of `gemm_rows` rows by
// `gemm_columns` vectors. Between the two products of a group of gemm_rows rows, its scores stay
// in the L1 cache.
//
// A packed block is a sequence of panels, each gemm_columns vectors wide; a panel holds, step by
// step along the axis that is summed over, the vectors of its columns. Written in words of 32
// bits: a step takes one float32, or, in pairs, two bfloat16 numbers that are neighbours along the
// summed axis.
#pragma once

#include "kernels/attention_rows.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int64_t panel = gemm_columns * lanes;
// A row of scores; the odd line keeps rows from falling into the same sets of the L1 cache.
constexpr int64_t score_stride = attention_max_key_block + 2 * panel + 16;

template <bool Pairs>
inline int64_t steps_of(int64_t n) {
  return Pairs ? (n + 1) / 2 : n;
}

template <bool Pairs>
inline Floats accumulate(Floats sum, Floats a, Floats b) {
#if defined(TESSERAL_BF16_DOT)
  if constexpr (Pairs) return add_pair_products(sum, a, b);
#else
  static_assert(!Pairs, "this target has no product of bfloat16 pairs");
#endif
  return multiply_add(a, b, sum);
}

// sums[r][c] = sum over steps of a[r * RowStride + step * StepStride] * b[step][c], where steps of
// b are Width vectors apart.
template <bool Pairs, int Rows, int Columns, int Width, int64_t RowStride, int64_t StepStride>
inline void multiply_tile(const float* a, const float* b, int64_t steps,
                          Floats (&sums)[Rows][Columns]) {
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) sums[r][c] = zero();
  }
  for (int64_t step = 0; step < steps; ++step) {
    if constexpr (lanes >= 16) {  // a step of less is a line at most, which chips read ahead
      for (int c = 0; c < Columns; ++c) __builtin_prefetch(b + (8 * Width + c) * lanes);
    }
    Floats columns[Columns];
    for (int c = 0; c < Columns; ++c) columns[c] = load(b + c * lanes);
    for (int r = 0; r < Rows; ++r) {
      const Floats row = broadcast(a[r * RowStride]);
      for (int c = 0; c < Columns; ++c) {
        sums[r][c] = accumulate<Pairs>(sums[r][c], row, columns[c]);
      }
    }
    a += StepStride;
    b += Width * lanes;
  }
}

// Words [step, step + lanes) of one row of keys or values, zeros past its end.
template <bool Pairs>
inline Floats row_words(const KeyValueRows& source, const char* row, const float* wide,
                        int64_t step) {
  if (wide != nullptr) return load(wide + step);
  if (!Pairs) {
    const char* p = row + step * bytes_of(source.element);
    if (step + lanes <= source.width) return load_lanes(source.element, p);
    return load_some(source.element, p, static_cast<int>(source.width - step));
  }
  const char* p = row + 4 * step;
  if (2 * (step + lanes) <= source.width) return load(reinterpret_cast<const float*>(p));
  alignas(64) float words[lanes] = {};
  std::memcpy(words, p, static_cast<std::size_t>(2 * (source.width - 2 * step)));
  return load(words);
}

// Rows become columns: writes the words of each step as one vector, steps `stride` words apart.
// `wide` holds rows of codes as float32, attention_max_dim apart; null for others.
template <bool Pairs>
void transpose_rows(const KeyValueRows& source, const char* const* rows, int n_rows,
                    const float* wide, float* out, int64_t stride) {
  const int64_t steps = steps_of<Pairs>(source.width);
  // bfloat16 numbers move two by two and are widened on their way out
  const bool widens = !Pairs && source.element == Element::bf16;
  const int64_t words = widens ? steps_of<true>(source.width) : steps;
  for (int64_t word = 0; word < words; word += lanes) {
    Floats block[lanes];
    for (int i = 0; i < lanes; ++i) {
      const float* row = wide == nullptr ? nullptr : wide + i * attention_max_dim;
      if (i >= n_rows) {
        block[i] = zero();
      } else if (widens) {
        block[i] = row_words<true>(source, rows[i], nullptr, word);
      } else {
        block[i] = row_words<Pairs>(source, rows[i], row, word);
      }
    }
    transpose(block);
    const auto count = static_cast<int>(at_most(lanes, words - word));
    float* columns = out + (widens ? 2 : 1) * word * stride;
    for (int i = 0; i < count && !widens; ++i) store(columns + i * stride, block[i]);
    for (int i = 0; i < count && widens; ++i) {
      Floats even, odd;
      widen_pairs(block[i], even, odd);
      store(columns + 2 * i * stride, even);
      if (2 * (word + i) + 1 < steps) store(columns + (2 * i + 1) * stride, odd);
    }
  }
}

// Packs queries [row, row + gemm_rows) as one panel: for each step, the numbers of all rows. May
// write up to `lanes` words past its end.
template <bool Pairs>
void pack_queries(const AttentionCall& call, const AttentionTask& task, int64_t row, float* out) {
  const Sequence& sequence = call.sequences[task.sequence];
  const KeyValueRows source = {call.element, call.key.width, call.query, Element::f32, {}, {}};
  // A store of whole vectors runs into the next step's rows, so the last rows come first.
  for (int64_t first = (gemm_rows - 1) / lanes * lanes; first >= 0; first -= lanes) {
    const char* rows[lanes];
    const auto n_rows = static_cast<int>(
        at_most(at_most(lanes, gemm_rows - first), rows_of(call, task) - row - first));
    RowWalk walk(call, task, row + first);
    for (int r = 0; r < n_rows; ++r) {
      const Row place = walk.next();
      rows[r] = row_of(call.query, sequence.batch, place.head, sequence.q_start + place.query);
      prefetch(rows[r] + gemm_rows * call.query.row, row_bytes(source));
    }
    transpose_rows<Pairs>(source, rows, n_rows, nullptr, out + first, gemm_rows);
  }
}

// Packs keys [begin, end) transposed: panels of keys, steps along the head dimension.
template <bool Pairs>
void pack_keys(const AttentionCall& call, const AttentionTask& task, int64_t begin, int64_t end,
               float* out) {
  const Sequence& sequence = call.sequences[task.sequence];
  const KeyValueRows& source = call.key;
  const int64_t steps = steps_of<Pairs>(source.width);
  alignas(64) float wide[lanes][attention_max_dim];
  for (int64_t first = begin; first < begin + round_up(end - begin, panel); first += lanes) {
    float* columns = out + (first - begin) / panel * (steps * panel) + (first - begin) % panel;
    const char* rows[lanes];
    const auto n_rows = static_cast<int>(at_least(0, at_most(lanes, end - first)));
    for (int64_t key = first + lanes; key < at_most(first + 2 * lanes, end); ++key) {
      const KeyRun run = find_keys(call, sequence, key, end);
      prefetch(row_of(source.rows, run.batch, task.kv_head, run.row), row_bytes(source));
    }
    for (int i = 0; i < n_rows; ++i) {
      const KeyRun run = find_keys(call, sequence, first + i, end);
      rows[i] = row_of(source.rows, run.batch, task.kv_head, run.row);
      if (is_coded(source.element)) widen_row(source, run.batch, task.kv_head, run.row, wide[i]);
    }
    transpose_rows<Pairs>(source, rows, n_rows, is_coded(source.element) ? wide[0] : nullptr,
                          columns, panel);
  }
}

// Where the steps of column panel `column` of packed values begin, and how many vectors it has.
inline int panel_vectors(int64_t width, int64_t column) {
  return static_cast<int>(at_most(gemm_columns, (width - column + lanes - 1) / lanes));
}

#if defined(TESSERAL_BF16_DOT)
void pack_value_pairs(const AttentionCall& call, const AttentionTask& task, int64_t begin,
                      int64_t end, float* out) {
  const Sequence& sequence = call.sequences[task.sequence];
  const KeyValueRows& source = call.value;
  const int64_t steps = steps_of<true>(end - begin);
  alignas(64) const std::uint16_t nothing[attention_max_dim] = {};
  for (int64_t step = 0; step < steps; ++step) {
    const std::uint16_t* pair[2] = {nothing, nothing};
    for (int i = 0; i < 2 && begin + 2 * step + i < end; ++i) {
      const KeyRun run = find_keys(call, sequence, begin + 2 * step + i, end);
      pair[i] = reinterpret_cast<const std::uint16_t*>(
          row_of(source.rows, run.batch, task.kv_head, run.row));
    }
    for (int64_t column = 0; column < source.width; column += panel) {
      const int vectors = panel_vectors(source.width, column);
      float* p = out + column * steps + step * vectors * lanes;
      for (int v = 0; v < vectors; ++v) {
        const int64_t at = column + v * lanes;
        if (at + lanes <= source.width) {
          store(p + v * lanes, interleave_bf16(pair[0] + at, pair[1] + at));
        } else {
          std::uint16_t part[2][lanes] = {};
          for (int i = 0; i < 2; ++i) {
            std::memcpy(part[i], pair[i] + at, static_cast<std::size_t>(2 * (source.width - at)));
          }
          store(p + v * lanes, interleave_bf16(part[0], part[1]));
        }
      }
    }
  }
}
#endif

// Packs values [begin, end): panels of columns, steps along the keys.
template <bool Pairs>
void pack_values(const AttentionCall& call, const AttentionTask& task, int64_t begin, int64_t end,
                 float* out) {
#if defined(TESSERAL_BF16_DOT)
  if constexpr (Pairs) return pack_value_pairs(call, task, begin, end, out);
#endif
  const Sequence& sequence = call.sequences[task.sequence];
  const KeyValueRows& source = call.value;
  const int64_t steps = end - begin;
  alignas(64) float wide[attention_max_dim + lanes];
  for (int64_t key = begin; key < end;) {
    const KeyRun run = find_keys(call, sequence, key, end);
    for (int64_t i = 0; i < run.count; ++i, ++key) {
      const char* row = row_of(source.rows, run.batch, task.kv_head, run.row + i);
      prefetch(row + lanes * source.rows.row, row_bytes(source));
      if (is_coded(source.element)) widen_row(source, run.batch, task.kv_head, run.row + i, wide);
      for (int64_t column = 0; column < source.width; column += panel) {
        const int vectors = panel_vectors(source.width, column);
        float* p = out + column * steps + (key - begin) * vectors * lanes;
        for (int v = 0; v < vectors; ++v) {
          store(p + v * lanes,
                row_words<false>(source, row, is_coded(source.element) ? wide : nullptr,
                                 column + v * lanes));
        }
      }
    }
  }
}

// The memory of a task, cut up.
template <bool Pairs>
struct Workspace {
  float* queries;
  float* keys;
  float* values;
  float* scores;
  float* state;

  Workspace(const AttentionCall& call, float* memory) {
    const int64_t rows = round_up(call.strip_rows, gemm_rows);
    queries = memory;
    keys = queries + round_up(rows * steps_of<Pairs>(call.key.width) + lanes, 16);
    values = keys + round_up(call.key_block, panel) * round_up(steps_of<Pairs>(call.key.width), 16);
    scores = values + steps_of<Pairs>(call.key_block) * round_up(call.value.width, lanes);
    state = scores + gemm_rows * score_stride;
  }
  static int64_t floats(const AttentionCall& call) {
    const Workspace laid(call, nullptr);
    return (laid.state - static_cast<float*>(nullptr)) + State::floats(call, call.strip_rows);
  }
};

// Rows that are multiplied together, and the keys of a packed block that some of them sees.
template <int Most>
struct Group {
  Row rows[Most];
  int n_rows;
  int64_t from;  // counted from the start of the block, whole panels
  int64_t to;
  bool hides;  // whether some row does not see some of these keys

  bool sees_keys() const { return from < to; }
};

// Brings keys [begin, end) down to those that some row sees under a boolean mask.
inline void skip_masked(const AttentionCall& call, const AttentionTask& task, const Row* rows,
                        int n_rows, int64_t& begin, int64_t& end) {
  const DenseMask& mask = call.mask;
  if (!has_dense_mask(call) || mask.element != Element::boolean || mask.column != 1) return;
  const int64_t batch = call.sequences[task.sequence].batch;
  int64_t first = end;
  int64_t stop = begin;
  const char* before = nullptr;
  for (int r = 0; r < n_rows; ++r) {
    const char* p = row_of(mask.rows, batch, rows[r].head, rows[r].query);
    if (p == before) continue;
    before = p;
    int64_t key = begin;
    while (key < first && !p[key]) ++key;
    first = key;
    key = end;
    while (key > stop && !p[key - 1]) --key;
    stop = key;
  }
  begin = first;
  end = at_least(first, stop);
}

// Rows [row, row + Most) of a task that has `n_rows`, against the block of keys [begin, end).
template <int Most>
void find_group(const AttentionCall& call, const AttentionTask& task, int64_t row, int64_t n_rows,
                KeyRange block, Group<Most>& group) {
  group.n_rows = static_cast<int>(at_most(Most, n_rows - row));
  group.from = group.to = 0;
  group.hides = false;
  KeyRange some = {block.end, block.begin};
  KeyRange all = block;
  RowWalk walk(call, task, row);
  for (int r = 0; r < group.n_rows; ++r) {
    const Row& each = group.rows[r] = walk.next();
    some = {at_most(some.begin, each.k_begin), at_least(some.end, each.k_end)};
    all = {at_least(all.begin, each.k_begin), at_most(all.end, each.k_end)};
  }
  some = {at_least(some.begin, block.begin), at_most(some.end, block.end)};
  if (some.begin < some.end) {
    skip_masked(call, task, group.rows, group.n_rows, some.begin, some.end);
  }
  if (some.begin >= some.end) return;
  group.from = (some.begin - block.begin) / panel * panel;
  group.to = some.end - block.begin;
  group.hides = all.begin > block.begin + group.from || all.end < some.end ||
                (group.to - group.from) % panel != 0;
}

// What is needed after the block that ends at `key`, of keys that end at `end`: the next one, or
// the first of the next task.
inline Ahead after_block(const AttentionCall& call, const AttentionTask& task, int64_t key,
                         int64_t end) {
  if (key < end || task.next == nullptr) {
    return {call, task, key, at_most(key + call.key_block, end), 0};
  }
  const KeyRange keys = visible_keys(call, *task.next);
  return {call, *task.next, keys.begin, at_most(keys.begin + call.key_block, keys.end),
          rows_of(call, *task.next)};
}

template <bool Pairs>
class PackedTask {
 public:
  PackedTask(const AttentionCall& call, const AttentionTask& task, float* scratch)
      : call_(call),
        task_(task),
        space_(call, scratch),
        rows_(rows_of(call, task)),
        state_(call, task.state != nullptr ? task.state : space_.state, rows_),
        adjusts_(adjusts_scores(call)),
        unit_(unit_of(call)) {}

  void run() {
    state_.start(rows_);
    const int64_t steps = steps_of<Pairs>(call_.key.width);
    for (int64_t row = 0; row < rows_; row += gemm_rows) {
      pack_queries<Pairs>(call_, task_, row, space_.queries + row * steps);
    }
    const KeyRange keys = visible_keys(call_, task_);
    for (begin_ = keys.begin; begin_ < keys.end; begin_ = end_) {
      end_ = at_most(begin_ + call_.key_block, keys.end);
      pack_keys<Pairs>(call_, task_, begin_, end_, space_.keys);
      pack_values<Pairs>(call_, task_, begin_, end_, space_.values);
      Ahead ahead = after_block(call_, task_, end_, keys.end);
      for (int64_t row = 0; row < rows_; row += gemm_rows) {
        ahead.reach(row + gemm_rows, rows_);
        run_group(row);
      }
    }
    state_.finish(rows_);
    if (task_.state == nullptr) write_output(call_, task_, state_);
  }

 private:
  // Rows [row, row + gemm_rows) against the packed block.
  void run_group(int64_t row) {
    Group<gemm_rows> group;
    find_group(call_, task_, row, rows_, {begin_, end_}, group);
    if (!group.sees_keys()) return;
    const auto& [rows, n_rows, from, to, hides] = group;
    score(n_rows, row, from, to);
    bool fresh = true;  // whether nothing has been summed yet
    float factors[gemm_rows];
    for (int r = 0; r < n_rows; ++r) {
      fresh = fresh && state_.sum[row + r] == 0;
      factors[r] = weigh(rows[r], row + r, space_.scores + r * score_stride, from, to, hides);
    }
    add_values(n_rows, row, from, to, fresh ? nullptr : factors);
  }

  void score(int n_rows, int64_t row, int64_t from, int64_t to) {
    if (n_rows > 8 || gemm_rows <= 8) return score_rows<gemm_rows>(row, from, to);
    if (n_rows > 4) return score_rows<(gemm_rows > 8 ? 8 : gemm_rows)>(row, from, to);
    return score_rows<(gemm_rows > 4 ? 4 : gemm_rows)>(row, from, to);
  }

  template <int Rows>
  void score_rows(int64_t row, int64_t from, int64_t to) {
    const int64_t steps = steps_of<Pairs>(call_.key.width);
    const float* queries = space_.queries + row * steps;
    for (int64_t column = from; column < to; column += panel) {
      const float* keys = space_.keys + column * steps;
      float* out = space_.scores + column - from;
      if (to - column > (gemm_columns - 1) * lanes) {
        score_tile<Rows, gemm_columns>(queries, keys, steps, out);
      } else {
        score_tile<Rows, 1>(queries, keys, steps, out);
      }
    }
  }

  template <int Rows, int Columns>
  static void score_tile(const float* queries, const float* keys, int64_t steps, float* out) {
    Floats sums[Rows][Columns];
    multiply_tile<Pairs, Rows, Columns, gemm_columns, 1, gemm_rows>(queries, keys, steps, sums);
    for (int r = 0; r < Rows; ++r) {
      for (int c = 0; c < Columns; ++c) store(out + r * score_stride + c * lanes, sums[r][c]);
    }
  }

  // Turns the scores of one row into weights; returns the factor for what it summed before.
  float weigh(const Row& row, int64_t index, float* scores, int64_t from, int64_t to, bool hides) {
    const int64_t begin = begin_ + from;
    const int64_t count = round_up(to - from, panel);
    float* by_key = scores - begin;
    if (adjusts_) adjust_scores(call_, task_, row, by_key, begin, begin_ + to);
    if (hides) {
      const Row seen = {row.head, row.query, row.k_begin, at_most(row.k_end, begin_ + to)};
      hide_scores(seen, by_key, begin, begin + count);
    }
    float& limit = state_.limit[index];
    const float factor = raise_limit(scores, count, unit_, &limit);
    const float sum =
        exponentiate<Pairs>(scores, count, unit_, take_limit(scores, count, unit_, limit));
    state_.sum[index] = state_.sum[index] * factor + sum;
    return factor;
  }

  // Adds the weighted values to what the rows have summed, which first takes a factor for each
  // row; no factors stand for rows that have summed nothing.
  void add_values(int n_rows, int64_t row, int64_t from, int64_t to, const float* factors) {
    const int64_t width = call_.value.width;
    for (int64_t column = 0; column < width; column += panel) {
      if (panel_vectors(width, column) == gemm_columns) {
        add_columns<gemm_columns>(n_rows, row, from, to, column, factors);
      } else {
        add_columns<1>(n_rows, row, from, to, column, factors);
      }
    }
  }

  template <int Columns>
  void add_columns(int n_rows, int64_t row, int64_t from, int64_t to, int64_t column,
                   const float* factors) {
    if (n_rows > 8 || gemm_rows <= 8) {
      return add_tile<gemm_rows, Columns>(n_rows, row, from, to, column, factors);
    }
    if (n_rows > 4) {
      return add_tile<(gemm_rows > 8 ? 8 : gemm_rows), Columns>(n_rows, row, from, to, column,
                                                                factors);
    }
    add_tile<(gemm_rows > 4 ? 4 : gemm_rows), Columns>(n_rows, row, from, to, column, factors);
  }

  template <int Rows, int Columns>
  void add_tile(int n_rows, int64_t row, int64_t from, int64_t to, int64_t column,
                const float* factors) {
    const int64_t block_steps = steps_of<Pairs>(end_ - begin_);
    const int64_t first = from / (Pairs ? 2 : 1);
    const float* values = space_.values + column * block_steps + first * Columns * lanes;
    Floats sums[Rows][Columns];
    multiply_tile<Pairs, Rows, Columns, Columns, score_stride, 1>(
        space_.scores, values, steps_of<Pairs>(to) - first, sums);
    for (int r = 0; r < Rows; ++r) {
      if (r >= n_rows) break;
      float* out = state_.values + (row + r) * state_.stride + column;
      for (int c = 0; c < Columns; ++c) {
        Floats sum = sums[r][c];
        if (factors != nullptr) {
          sum = multiply_add(load(out + c * lanes), broadcast(factors[r]), sum);
        }
        store(out + c * lanes, sum);
      }
    }
  }

  const AttentionCall& call_;
  const AttentionTask& task_;
  Workspace<Pairs> space_;
  int64_t rows_;
  State state_;
  bool adjusts_;
  float unit_;
  int64_t begin_ = 0;  // the packed block of keys
  int64_t end_ = 0;
};

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

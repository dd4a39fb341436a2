// Attention with keys read in place, once, for few rows: decoding.
//
// The rows of a task are the queries of all heads that share a key head, so that one read of a
// key serves them all. Keys come in small blocks; the scores of a block stay in the L1 cache.
// Dense keys and values are widened as they are loaded, or multiplied as pairs of bfloat16
// (attention_pairs.h); codes are widened to a buffer first, or multiplied as integers
// (attention_coded.h, attention_words.h), where the target can.
#pragma once

#include <type_traits>

#include "kernels/attention_coded.h"
#include "kernels/attention_feed.h"
#include "kernels/attention_pairs.h"
#include "kernels/attention_rows.h"
#include "kernels/attention_words.h"
#include "simd/unroll.h"

#if defined(TESSERAL_INT8_DOT) || defined(TESSERAL_INT16_DOT)
#define TESSERAL_CODED_DOT
#endif

namespace tesseral::TESSERAL_TARGET {
namespace {

// Rows of one element type at a constant stride.
template <Element Type>
struct Stream {
  static constexpr Element type = Type;
  static constexpr int64_t size = Type == Element::f32 ? 4 : 2;
  const char* first;
  int64_t stride;

  const char* at(int64_t key) const { return first + key * stride; }
  static Floats load_lanes_of(const char* row, int64_t column) {
    const char* p = row + column * size;
    if constexpr (Type == Element::f32) return load(reinterpret_cast<const float*>(p));
    const auto* halves = reinterpret_cast<const std::uint16_t*>(p);
    if constexpr (Type == Element::bf16) return load_bf16(halves);
    return load_f16(halves);
  }
  // 2 * lanes numbers in the order that costs least: bfloat16 as its even and odd halves.
  static constexpr bool in_halves = Type == Element::bf16;
  static void load_two(const char* row, int64_t column, Floats& a, Floats& b) {
    if constexpr (in_halves) {
      load_bf16_halves(reinterpret_cast<const std::uint16_t*>(row + column * size), a, b);
    } else {
      a = load_lanes_of(row, column);
      b = load_lanes_of(row, column + lanes);
    }
  }
  static Floats load_part_of(const char* row, int64_t column, int count) {
    return load_some(Type, row + column * size, count);
  }
};

// Puts a row of queries into the order in which load_two gives keys.
inline void order_query(float* query, int64_t width) {
  for (int64_t column = 0; column + 2 * lanes <= width; column += 2 * lanes) {
    Floats a = load(query + column);
    Floats b = load(query + column + lanes);
    split_halves(a, b);
    store(query + column, a);
    store(query + column + lanes, b);
  }
}

// Adds to sums[r * n_keys + k] the products of query r and key k over 2 * lanes columns.
template <Element Type, int Rows>
inline void add_key_columns(const char* const (&row)[lanes / Rows], int64_t column,
                            const float* queries, int64_t query_stride, Floats (&sums)[lanes]) {
  constexpr int n_keys = lanes / Rows;
  // keys whose numbers are in registers at a time: of 16 registers, sums take 8
  constexpr int at_once = lanes < 16 && n_keys > 2 ? 2 : n_keys;
  TESSERAL_UNROLL
  for (int first = 0; first < n_keys; first += at_once) {
    Floats x[at_once][2];
    TESSERAL_UNROLL
    for (int k = 0; k < at_once; ++k) {
      Stream<Type>::load_two(row[first + k], column, x[k][0], x[k][1]);
    }
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      TESSERAL_UNROLL
      for (int half = 0; half < 2; ++half) {
        const Floats query = load(queries + r * query_stride + half * lanes);
        TESSERAL_UNROLL
        for (int k = 0; k < at_once; ++k) {
          Floats& sum = sums[r * n_keys + first + k];
          sum = multiply_add(x[k][half], query, sum);
        }
      }
    }
  }
}

// scores[r][key] = queries[r] . keys[key]; queries are padded with zeros to `query_stride`, and
// ordered as the type wants. Takes a step of `feed` for every key.
template <Element Type, int Rows>
void multiply_keys(const Stream<Type>& keys, int64_t count, int64_t width, const float* queries,
                   int64_t query_stride, float* scores, Feed& feed) {
  constexpr int n_keys = lanes / Rows;
  const int64_t whole = width / lanes * lanes;
  const auto rest = static_cast<int>(width - whole);
  for (int64_t key = 0; key < count; key += n_keys) {
    feed.step(n_keys);
    const char* row[n_keys];
    for (int k = 0; k < n_keys; ++k) row[k] = keys.at(at_most(key + k, count - 1));
    Floats sums[lanes];
    for (int i = 0; i < lanes; ++i) sums[i] = zero();
    int64_t column = 0;
    for (; column + 2 * lanes <= width; column += 2 * lanes) {
      add_key_columns<Type, Rows>(row, column, queries + column, query_stride, sums);
    }
    for (; column < whole; column += lanes) {
      Floats query[Rows];
      for (int r = 0; r < Rows; ++r) query[r] = load(queries + r * query_stride + column);
      for (int k = 0; k < n_keys; ++k) {
        const Floats x = keys.load_lanes_of(row[k], column);
        for (int r = 0; r < Rows; ++r) {
          sums[r * n_keys + k] = multiply_add(x, query[r], sums[r * n_keys + k]);
        }
      }
    }
    if (rest != 0) {
      for (int k = 0; k < n_keys; ++k) {
        const Floats x = keys.load_part_of(row[k], whole, rest);
        for (int r = 0; r < Rows; ++r) {
          const Floats query = load(queries + r * query_stride + whole);
          sums[r * n_keys + k] = multiply_add(x, query, sums[r * n_keys + k]);
        }
      }
    }
    alignas(64) float totals[lanes];
    store(totals, sum_each(sums));
    for (int r = 0; r < Rows; ++r) {
      std::memcpy(scores + r * stream_stride + key, totals + r * n_keys, n_keys * sizeof(float));
    }
  }
}

// values[r][column...] = factors[r] * values[r][column...] + sum over keys of
// weights[r][key] * keys[key][column...], for Columns vectors of columns, in halves or in order.
// Takes a step of `feed` for every number.
template <Element Type, int Rows, int Columns, bool Halves>
void add_value_columns(const Stream<Type>& source, int64_t count, int64_t column, int last_count,
                       const float* weights, const float* factors, float* values, int64_t stride,
                       Feed& feed) {
  static_assert(!Halves || Columns % 2 == 0, "halves come in pairs of vectors");
  constexpr int step = Halves ? 2 : 1;
  Floats sums[Rows][Columns];
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int c = 0; c < Columns; c += step) {
      const float* from = values + r * stride + column + c * lanes;
      sums[r][c] = multiply(broadcast(factors[r]), load(from));
      if constexpr (Halves) {
        sums[r][c + 1] = multiply(broadcast(factors[r]), load(from + lanes));
        split_halves(sums[r][c], sums[r][c + 1]);
      }
    }
  }
  for (int64_t key = 0; key < count; ++key) {
    if (key % feed_pace == 0) feed.step(feed_pace * Columns * lanes);
    const char* row = source.at(key);
    Floats x[Columns];
    TESSERAL_UNROLL
    for (int c = 0; c < Columns; c += step) {
      const int64_t at = column + c * lanes;
      if constexpr (Halves) {
        source.load_two(row, at, x[c], x[c + 1]);
      } else {
        x[c] = c + 1 == Columns && last_count != lanes ? source.load_part_of(row, at, last_count)
                                                       : source.load_lanes_of(row, at);
      }
    }
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Floats weight = broadcast(weights[r * stream_stride + key]);
      TESSERAL_UNROLL
      for (int c = 0; c < Columns; ++c) sums[r][c] = multiply_add(weight, x[c], sums[r][c]);
    }
  }
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int c = 0; c < Columns; c += step) {
      float* to = values + r * stride + column + c * lanes;
      if constexpr (Halves) {
        join_halves(sums[r][c], sums[r][c + 1]);
        store(to + lanes, sums[r][c + 1]);
      }
      store(to, sums[r][c]);
    }
  }
}

template <Element Type, int Rows, int Columns>
void add_values_by(const Stream<Type>& source, int64_t count, int64_t& column, int64_t width,
                   const float* weights, const float* factors, float* values, int64_t stride,
                   Feed& feed) {
  while (width - column > (Columns - 1) * lanes) {
    const auto last = static_cast<int>(at_most(lanes, width - column - (Columns - 1) * lanes));
    constexpr bool halves = Stream<Type>::in_halves && Columns % 2 == 0;
    if (halves && last == lanes) {
      add_value_columns<Type, Rows, Columns, halves>(source, count, column, last, weights, factors,
                                                     values, stride, feed);
    } else {
      add_value_columns<Type, Rows, Columns, false>(source, count, column, last, weights, factors,
                                                    values, stride, feed);
    }
    column += Columns * lanes;
  }
}

template <Element Type, int Rows>
void add_streamed_values(const Stream<Type>& source, int64_t count, int64_t width,
                         const float* weights, const float* factors, float* values, int64_t stride,
                         Feed& feed) {
  constexpr int columns = lanes < 16 ? 8 / Rows : (Rows == 4 ? 4 : 8);
  int64_t column = 0;
  add_values_by<Type, Rows, columns>(source, count, column, width, weights, factors, values, stride,
                                     feed);
  if constexpr (columns > 2) {
    add_values_by<Type, Rows, 2>(source, count, column, width, weights, factors, values, stride,
                                 feed);
  }
  add_values_by<Type, Rows, 1>(source, count, column, width, weights, factors, values, stride,
                               feed);
}

// Rows that few-row kernels take at most.
constexpr int64_t stream_max_rows = 32;

class StreamedTask {
 public:
  StreamedTask(const AttentionCall& call, const AttentionTask& task, float* scratch)
      : call_(call),
        task_(task),
        sequence_(call.sequences[task.sequence]),
        rows_(rows_of(call, task)),
        query_stride_(round_up(call.key.width, lanes)),
        queries_(scratch),
        scores_(queries_ + rows_ * query_stride_),
        wide_(scores_ + rows_ * stream_stride),
        coded_(wide_ + wide_floats(call)),
        state_(call, task.state != nullptr ? task.state : coded_ + coded_floats(call), rows_),
        block_(block_of(call)),
        adjusts_(adjusts_scores(call)),
        unit_(unit_of(call)),
        pairs_(multiplies_pairs(call)) {}

  static int64_t floats(const AttentionCall& call) {
    const int64_t rows = stream_max_rows;
    return rows * (round_up(call.key.width, lanes) + stream_stride) + wide_floats(call) +
           coded_floats(call) + State::floats(call, rows);
  }

  void run() {
    state_.clear(rows_);
    int64_t begin = task_.k_end;
    int64_t end = task_.k_begin;
    for (int64_t r = 0; r < rows_; ++r) {
      places_[r] = find_row(call_, task_, r);
      begin = at_most(begin, places_[r].k_begin);
      end = at_least(end, places_[r].k_end);
    }
    copy_queries();
    encode_queries();
    KeysAhead now = keys_ahead(begin, end);
    Feed(call_.key, now, 1).step();
    for (int64_t key = begin; key < end;) {
      const int64_t after = key + now.run.count;
      const KeysAhead next = after < end ? keys_ahead(after, end) : keys_of_next_task();
      run_block(key, now.run, next);
      key = after;
      now = next;
    }
    if (task_.state == nullptr) write_output(call_, task_, state_);
  }

 private:
  // The first block of keys in [begin, end).
  KeysAhead keys_ahead(int64_t begin, int64_t end) const {
    if (begin >= end) return {};
    return {find_keys(call_, sequence_, begin, at_most(end, begin + block_)), task_.kv_head};
  }

  // The first keys of what this thread will probably do next.
  KeysAhead keys_of_next_task() const {
    if (task_.next == nullptr) return {};
    const KeyRange keys = visible_keys(call_, *task_.next);
    if (keys.begin >= keys.end) return {};
    const Sequence& sequence = call_.sequences[task_.next->sequence];
    const int64_t end = at_most(keys.begin + block_, keys.end);
    return {find_keys(call_, sequence, keys.begin, end), task_.next->kv_head};
  }

  // Keys of a block: up to 32 KiB of them, in the near cache, which values of four rows are read
  // from twice.
  static int64_t block_of(const AttentionCall& call) {
    if (is_coded(call.key.element) || is_coded(call.value.element)) return coded_block;
    return row_bytes(call.key) * stream_block <= 1 << 15 ? stream_block : stream_block / 2;
  }

  static int64_t wide_floats(const AttentionCall& call) {
    return coded_block * round_up(at_least(call.key.width, call.value.width), lanes);
  }

#if defined(TESSERAL_CODED_DOT)
  static int64_t coded_floats(const AttentionCall& call) {
    const bool coded = multiplies_codes(call.key) || multiplies_codes(call.value);
    return coded ? (stream_max_rows * coded_query_bytes + coded_value_bytes) / 4 + 4 * coded_block
                 : 0;
  }

  void encode_queries() {
    if (!multiplies_codes(call_.key)) return;
    for (int64_t r = 0; r < rows_; ++r) {
      char* words = reinterpret_cast<char*>(coded_) + r * coded_query_bytes;
      coded_queries_[r].words = reinterpret_cast<CodedQuery::Word*>(words);
      const float* query = queries_ + r * query_stride_;
      if (call_.element == Element::f32) {
        coded_queries_[r].template encode<wide_digits>(call_.key, query);
      } else {
        coded_queries_[r].template encode<short_digits>(call_.key, query);
      }
    }
  }

  float* scales() const { return coded_ + stream_max_rows * coded_query_bytes / 4; }

  template <int Digits>
  void multiply_codes(const KeyRun& run) {
    const char* first = row_of(call_.key.rows, run.batch, task_.kv_head, run.row);
    load_scales(call_.key, run, task_.kv_head, scales(), scales() + coded_block);
    each_row_group([&](auto n_rows, int64_t row) {
      multiply_coded_keys<Digits, decltype(n_rows)::value>(
          call_.key, first, run.count, coded_queries_ + row, scales(), scales() + coded_block,
          scores_ + row * stream_stride, stream_stride, feed_);
    });
  }

  template <int Digits>
  void add_codes(const KeyRun& run, const float* factors) {
    const char* first = row_of(call_.value.rows, run.batch, task_.kv_head, run.row);
    float* offsets = scales() + coded_block;
    load_scales(call_.value, run, task_.kv_head, scales(), offsets);
    add_coded_run<Digits>(call_.value, first, run.count, rows_, scores_, scales(), offsets,
                          offsets + coded_block, factors, state_.values, state_.stride, feed_);
  }
#else
  static int64_t coded_floats(const AttentionCall&) { return 0; }
  void encode_queries() {}
#endif

  void multiply_run(const KeyRun& run) {
#if defined(TESSERAL_CODED_DOT)
    if (multiplies_codes(call_.key)) {
      return call_.element == Element::f32 ? multiply_codes<wide_digits>(run)
                                           : multiply_codes<short_digits>(run);
    }
#endif
#if defined(TESSERAL_BF16_DOT)
    if (pairs_) {
      return each_row_group([&](auto n_rows, int64_t row) {
        multiply_key_pairs<decltype(n_rows)::value>(pair_rows_of(call_.key, run), run.count,
                                                    queries_ + row * query_stride_, query_stride_,
                                                    scores_ + row * stream_stride, feed_);
      });
    }
#endif
    with_rows(call_.key, run, [&](const auto& keys) {
      each_row_group([&](auto n_rows, int64_t row) {
        multiply_keys<std::decay_t<decltype(keys)>::type, decltype(n_rows)::value>(
            keys, run.count, call_.key.width, queries_ + row * query_stride_, query_stride_,
            scores_ + row * stream_stride, feed_);
      });
    });
  }

  void add_run(const KeyRun& run, const float* factors) {
#if defined(TESSERAL_CODED_DOT)
    if (multiplies_codes(call_.value)) {
      return call_.element == Element::f32 ? add_codes<wide_digits>(run, factors)
                                           : add_codes<short_digits>(run, factors);
    }
#endif
#if defined(TESSERAL_BF16_DOT)
    if (pairs_) {
      return each_row_group([&](auto n_rows, int64_t row) {
        add_value_pairs<decltype(n_rows)::value>(
            pair_rows_of(call_.value, run), run.count, scores_ + row * stream_stride, factors + row,
            state_.values + row * state_.stride, state_.stride, feed_);
      });
    }
#endif
    with_rows(call_.value, run, [&](const auto& values) {
      each_row_group([&](auto n_rows, int64_t row) {
        add_streamed_values<std::decay_t<decltype(values)>::type, decltype(n_rows)::value>(
            values, run.count, call_.value.width, scores_ + row * stream_stride, factors + row,
            state_.values + row * state_.stride, state_.stride, feed_);
      });
    });
  }

  void copy_queries() {
    const KeyValueRows source = {call_.element, call_.key.width, call_.query, Element::f32, {}, {}};
    for (int64_t r = 0; r < rows_; ++r) {
      const Row& row = places_[r];
      const int64_t at = sequence_.q_start + row.query;
      float* query = queries_ + r * query_stride_;
      if (pairs_) {
        std::memset(query, 0, static_cast<std::size_t>(4 * query_stride_));
        std::memcpy(query, row_of(source.rows, sequence_.batch, row.head, at),
                    static_cast<std::size_t>(row_bytes(source)));
        continue;
      }
      widen_row(source, sequence_.batch, row.head, at, query);
      if (call_.key.element == Element::bf16) order_query(query, call_.key.width);
    }
  }

  // While keys are multiplied, the values of the block are on their way; meanwhile of these, the
  // keys of the next.
  void run_block(int64_t key, const KeyRun& run, const KeysAhead& next) {
    feed_ = Feed(call_.value, {run, task_.kv_head}, row_groups() * run.count);
    multiply_run(run);
    float factors[stream_max_rows];
    for (int64_t r = 0; r < rows_; ++r) factors[r] = weigh(r, key, run.count);
    feed_ = Feed(call_.key, next, value_steps(run.count));
    feed_scales(call_.key, next);
    feed_scales(call_.value, next);
    add_run(run, factors);
  }

  // Steps that add_run takes.
  int64_t value_steps(int64_t count) const {
#if defined(TESSERAL_CODED_DOT)
    if (multiplies_codes(call_.value)) return coded_value_steps(call_, count, rows_);
#endif
    return row_groups() * count * call_.value.width;
  }

  // Calls that each_row_group makes.
  int64_t row_groups() const { return rows_ / 4 + rows_ % 4 / 2 + rows_ % 2; }

  template <int N>
  struct Count {
    static constexpr int value = N;
  };

  template <class Action>
  void each_row_group(const Action& action) {
    int64_t row = 0;
    for (; row + 4 <= rows_; row += 4) action(Count<4>{}, row);
    for (; row + 2 <= rows_; row += 2) action(Count<2>{}, row);
    for (; row < rows_; ++row) action(Count<1>{}, row);
  }

#if defined(TESSERAL_BF16_DOT)
  PairRows pair_rows_of(const KeyValueRows& source, const KeyRun& run) const {
    return {row_of(source.rows, run.batch, task_.kv_head, run.row), source.rows.row, source.width};
  }
#endif

  // Calls action with the rows of a run, as they lie or widened.
  template <class Action>
  void with_rows(const KeyValueRows& source, const KeyRun& run, const Action& action) {
    const char* first = row_of(source.rows, run.batch, task_.kv_head, run.row);
    switch (source.element) {
      case Element::f32:
        return action(Stream<Element::f32>{first, source.rows.row});
      case Element::bf16:
        return action(Stream<Element::bf16>{first, source.rows.row});
      case Element::f16:
        return action(Stream<Element::f16>{first, source.rows.row});
      default: {
        const int64_t stride = round_up(source.width, lanes);
        for (int64_t i = 0; i < run.count; ++i) {
          widen_row(source, run.batch, task_.kv_head, run.row + i, wide_ + i * stride);
        }
        action(Stream<Element::f32>{reinterpret_cast<const char*>(wide_), stride * 4});
      }
    }
  }

  float weigh(int64_t r, int64_t key, int64_t count) {
    float* scores = scores_ + r * stream_stride;
    const Row& row = places_[r];
    if (adjusts_) adjust_scores(call_, task_, row, scores - key, key, key + count);
    if (row.k_begin > key || row.k_end < key + count) {
      hide_scores(row, scores - key, key, key + count);
    }
    const int64_t padded = round_up(count, 2 * lanes);
    for (int64_t i = count; i < padded; ++i) scores[i] = -infinity;
    float& limit = state_.limit[r];
    const float factor = raise_limit(scores, padded, unit_, &limit);
    const float minus = take_limit(scores, padded, unit_, limit);
    const float sum = pairs_ ? exponentiate<true>(scores, padded, unit_, minus)
                             : exponentiate<false>(scores, padded, unit_, minus);
    state_.sum[r] = state_.sum[r] * factor + sum;
    return factor;
  }

  const AttentionCall& call_;
  const AttentionTask& task_;
  const Sequence& sequence_;
  int64_t rows_;
  int64_t query_stride_;
  float* queries_;
  float* scores_;
  float* wide_;
  float* coded_;
  State state_;
  int64_t block_;
  bool adjusts_;
  float unit_;
  bool pairs_;
  Feed feed_;
  Row places_[stream_max_rows];
#if defined(TESSERAL_CODED_DOT)
  CodedQuery coded_queries_[stream_max_rows];
#endif
};

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

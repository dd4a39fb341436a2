// Keys and values read in place and multiplied as pairs of bfloat16, without being widened.
//
// A pair of a key holds two neighbours along the head dimension, and meets a pair of the query.
// A pair of values holds the same column of two neighbouring keys, and meets the pair of their
// weights, which are rounded to bfloat16.
#pragma once

#include "kernels/attention_feed.h"
#include "simd/unroll.h"

#if defined(TESSERAL_BF16_DOT)

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int64_t pair_columns = 2 * lanes;  // bfloat16 numbers of a vector

// Rows of bfloat16 at a constant stride.
struct PairRows {
  const char* first;
  int64_t stride;
  int64_t width;

  const std::uint16_t* at(int64_t row) const {
    return reinterpret_cast<const std::uint16_t*>(first + row * stride);
  }
};

// scores[r][key] = queries[r] . keys[key]; queries are pairs, padded with zeros to
// `query_stride` floats. Takes a step of `feed` for every key.
template <int Rows>
void multiply_key_pairs(const PairRows& keys, int64_t count, const float* queries,
                        int64_t query_stride, float* scores, Feed& feed) {
  constexpr int n_keys = lanes / Rows;
  const int64_t whole = keys.width / pair_columns * pair_columns;
  const auto rest = static_cast<int>(keys.width - whole);
  for (int64_t key = 0; key < count; key += n_keys) {
    feed.step(n_keys);
    const std::uint16_t* row[n_keys];
    TESSERAL_UNROLL
    for (int k = 0; k < n_keys; ++k) row[k] = keys.at(at_most(key + k, count - 1));
    Floats sums[lanes];
    TESSERAL_UNROLL
    for (int i = 0; i < lanes; ++i) sums[i] = zero();
    const auto add_column = [&](int64_t column, const auto& load_key) {
      Floats query[Rows];
      TESSERAL_UNROLL
      for (int r = 0; r < Rows; ++r) query[r] = load(queries + r * query_stride + column / 2);
      TESSERAL_UNROLL
      for (int k = 0; k < n_keys; ++k) {
        const Floats x = load_key(row[k] + column);
        TESSERAL_UNROLL
        for (int r = 0; r < Rows; ++r) {
          sums[r * n_keys + k] = add_pair_products(sums[r * n_keys + k], x, query[r]);
        }
      }
    };
    for (int64_t column = 0; column < whole; column += pair_columns) {
      add_column(column, [](const std::uint16_t* p) { return load_pairs(p); });
    }
    if (rest != 0) {
      add_column(whole, [rest](const std::uint16_t* p) { return load_pairs_part(p, rest); });
    }
    alignas(64) float totals[lanes];
    store(totals, sum_each(sums));
    for (int r = 0; r < Rows; ++r) {
      std::memcpy(scores + r * stream_stride + key, totals + r * n_keys, n_keys * sizeof(float));
    }
  }
}

// values[r][column...] = factors[r] * values[r][column...] + sum over keys of
// weights[r][key] * rows[key][column...], for Columns vectors of which the last two hold
// `last_count` numbers. Weights are pairs. Takes a step of `feed` for every number.
template <int Rows, int Columns>
void add_value_pair_columns(const PairRows& source, int64_t count, int64_t column, int last_count,
                            const float* weights, const float* factors, float* values,
                            int64_t stride, Feed& feed) {
  static_assert(Columns % 2 == 0, "two vectors of numbers make two vectors of pairs");
  alignas(64) const std::uint16_t nothing[attention_max_dim] = {};
  Floats sums[Rows][Columns];
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int c = 0; c < Columns; c += 2) {
      const float* from = values + r * stride + column + c * lanes;
      const bool both = column + (c + 1) * lanes < stride;
      sums[r][c] = multiply(broadcast(factors[r]), load(from));
      sums[r][c + 1] = both ? multiply(broadcast(factors[r]), load(from + lanes)) : zero();
      order_as_pairs(sums[r][c], sums[r][c + 1]);
    }
  }
  for (int64_t key = 0; key < count; key += 2) {
    const std::uint16_t* first = source.at(key) + column;
    const std::uint16_t* second = (key + 1 < count ? source.at(key + 1) : nothing) + column;
    if (key % feed_pace == 0) feed.step(feed_pace * Columns * lanes);
    Floats x[Columns];
    TESSERAL_UNROLL
    for (int c = 0; c < Columns; c += 2) {
      const int64_t at = c * lanes;
      if (c + 2 == Columns && last_count != pair_columns) {
        x[c] = load_pairs_part(first + at, last_count);
        x[c + 1] = load_pairs_part(second + at, last_count);
      } else {
        x[c] = load_pairs(first + at);
        x[c + 1] = load_pairs(second + at);
      }
      pair_rows(x[c], x[c + 1]);
    }
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Floats weight = broadcast(weights[r * stream_stride + key / 2]);
      TESSERAL_UNROLL
      for (int c = 0; c < Columns; ++c) sums[r][c] = add_pair_products(sums[r][c], x[c], weight);
    }
  }
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int c = 0; c < Columns; c += 2) {
      float* to = values + r * stride + column + c * lanes;
      order_by_column(sums[r][c], sums[r][c + 1]);
      store(to, sums[r][c]);
      if (column + (c + 1) * lanes < stride) store(to + lanes, sums[r][c + 1]);
    }
  }
}

template <int Rows, int Columns>
void add_value_pairs_by(const PairRows& source, int64_t count, int64_t& column,
                        const float* weights, const float* factors, float* values, int64_t stride,
                        Feed& feed) {
  constexpr int64_t before_last = (Columns - 2) * lanes;
  for (; source.width - column > before_last; column += Columns * lanes) {
    const int64_t last = at_most(pair_columns, source.width - column - before_last);
    add_value_pair_columns<Rows, Columns>(source, count, column, static_cast<int>(last), weights,
                                          factors, values, stride, feed);
  }
}

// Two rows at a time where there are more: with whole rows of values read in order, the chip reads
// ahead, and the next two rows find them in the L1 cache.
template <int Rows>
void add_value_pairs(const PairRows& source, int64_t count, const float* weights,
                     const float* factors, float* values, int64_t stride, Feed& feed) {
  if constexpr (Rows > 2) {
    add_value_pairs<2>(source, count, weights, factors, values, stride, feed);
    add_value_pairs<Rows - 2>(source, count, weights + 2 * stream_stride, factors + 2,
                              values + 2 * stride, stride, feed);
  } else {
    int64_t column = 0;
    add_value_pairs_by<Rows, 8>(source, count, column, weights, factors, values, stride, feed);
    add_value_pairs_by<Rows, 4>(source, count, column, weights, factors, values, stride, feed);
    add_value_pairs_by<Rows, 2>(source, count, column, weights, factors, values, stride, feed);
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

#endif

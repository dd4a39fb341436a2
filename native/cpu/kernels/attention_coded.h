// Keys and values of 8- or 4-bit codes, multiplied as integers.
//
// A query row q becomes step * (digits to base 256), two digits where the query has 16 bits and
// three where it is float32, so that its error, at most step / 2 = max|q| / 2^16 or 2^24, is below
// that of rounding the codes' values to the query's type. Weights are treated alike, once per
// block of keys, after the scale of each value was multiplied into its weight. Products of digits
// and codes are summed exactly in int32.
#pragma once

#include "kernels/attention_feed.h"
#include "kernels/attention_scales.h"

#if defined(TESSERAL_INT8_DOT)

#include <type_traits>

#include "simd/avx512_bf16_codes.h"
#include "simd/unroll.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

// Digits of a number, by the type of queries.
constexpr int short_digits = 2;
constexpr int wide_digits = 3;

// Bytes of the most digits that a row of queries takes, of four vectors for each part of a row of
// codes at most, and of what a run of values is laid out in.
constexpr int64_t coded_query_bytes = wide_digits * 2 * attention_max_dim;
constexpr int64_t coded_value_bytes = coded_block * 512;

// Largest integer whose digits all fit a signed byte after carries.
template <int Digits>
constexpr float largest_integer() {
  return Digits == 2 ? 127.0f * 256 : 127.0f * 65536;
}

template <int Digits>
inline Floats join_digits(const Sums* sums, int64_t stride) {
  Floats x = floats_of(sums[(Digits - 1) * stride]);
  for (int i = Digits - 2; i >= 0; --i) {
    x = multiply_add(x, broadcast(256), floats_of(sums[i * stride]));
  }
  return x;
}

inline int64_t code_chunks(const KeyValueRows& source) {
  return (row_bytes(source) + code_bytes - 1) / code_bytes;
}

// Vectors that a chunk of packed bytes unfolds to.
inline int parts_of(const KeyValueRows& source) { return source.element == Element::bits4 ? 2 : 1; }

// A query row as digits in the order in which codes unfold.
struct CodedQuery {
  using Word = std::int8_t;
  Word* words;  // digits: [digit][chunk][part][64]
  float step;
  float sum;

  template <int Digits>
  void encode(const KeyValueRows& keys, const float* query) {
    const int64_t chunks = code_chunks(keys);
    const int parts = parts_of(keys);
    const int64_t stride = chunks * parts * code_bytes;
    const float largest = largest_of(query, keys.width);
    const Steps steps = Steps::of(largest, largest_integer<Digits>());
    step = largest != largest ? largest : steps.step;
    alignas(64) float ordered[4 * attention_max_dim] = {};
    for (int64_t i = 0; i < keys.width; ++i) {
      const int64_t at = parts == 1 ? i : i / 128 * 128 + i % 2 * 64 + i % 128 / 2;
      ordered[at] = query[i] * steps.per_unit;
    }
    Floats integers = zero();
    for (int64_t i = 0; i < stride; i += lanes) {
      integers = add(integers, store_digits<Digits>(load(ordered + i), words + i, stride));
    }
    sum = sum_lanes(integers) * step;
  }
};

// Reads the codes of a key into the vectors that they unfold to.
template <int Vectors>
inline void unfold_codes(const KeyValueRows& source, const char* row, int64_t bytes, int flip,
                         Codes (&codes)[Vectors]) {
  if (parts_of(source) == 1) {
    TESSERAL_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      const int64_t begin = v * code_bytes;
      codes[v] = flip_codes(load_codes(row + begin, bytes - begin), flip);
    }
    return;
  }
  if constexpr (Vectors % 2 == 0) {
    TESSERAL_UNROLL
    for (int v = 0; v < Vectors; v += 2) {
      const int64_t begin = v / 2 * code_bytes;
      const Codes packed = flip_codes(load_codes(row + begin, bytes - begin), flip);
      codes[v] = low_codes(packed);
      codes[v + 1] = high_codes(packed);
    }
  }
}

// scores[r][key] = sum over columns of the integers of query r and the codes of a key, which
// unfold to Vectors vectors. The two highest digits are joined before the sum, which stays below
// 2^31: at most attention_max_dim * 255 * largest_integer<2>(). Takes a step of `feed` for every
// key.
template <int Digits, int Rows, int Vectors>
void sum_coded_keys(const KeyValueRows& source, const char* first, int64_t count,
                    const CodedQuery* queries, float* scores, int64_t score_row, Feed& feed) {
  constexpr int n_keys = lanes / Rows;
  constexpr int64_t stride = Vectors * code_bytes;
  const int64_t bytes = row_bytes(source);
  const int flip = flip_of(source);
  for (int64_t key = 0; key < count; key += n_keys) {
    feed.step(n_keys);
    Codes codes[n_keys][Vectors];
    TESSERAL_UNROLL
    for (int k = 0; k < n_keys; ++k) {
      unfold_codes<Vectors>(source, first + at_most(key + k, count - 1) * source.rows.row, bytes,
                            flip, codes[k]);
    }
    const auto add_digit = [&](int digit, Sums(&sums)[lanes]) {
      TESSERAL_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        TESSERAL_UNROLL
        for (int r = 0; r < Rows; ++r) {
          const Codes query = load_codes(queries[r].words + digit * stride + v * code_bytes);
          TESSERAL_UNROLL
          for (int k = 0; k < n_keys; ++k) {
            sums[r * n_keys + k] = add_products(sums[r * n_keys + k], codes[k][v], query);
          }
        }
      }
    };
    Sums sums[lanes];
    TESSERAL_UNROLL
    for (Sums& sum : sums) sum = no_sums();
    add_digit(Digits - 1, sums);
    TESSERAL_UNROLL
    for (Sums& sum : sums) sum = times_256(sum);
    add_digit(Digits - 2, sums);
    Floats totals = floats_of(sum_each(sums));
    if constexpr (Digits == 3) {
      TESSERAL_UNROLL
      for (Sums& sum : sums) sum = no_sums();
      add_digit(0, sums);
      totals = multiply_add(totals, broadcast(256), floats_of(sum_each(sums)));
    }
    alignas(64) float joined[lanes];
    store(joined, totals);
    for (int r = 0; r < Rows; ++r) {
      std::memcpy(scores + r * score_row + key, joined + r * n_keys, n_keys * sizeof(float));
    }
  }
}

// scores[r][key] = query r . key, for Rows rows and the keys of a run.
template <int Digits, int Rows>
void multiply_coded_keys(const KeyValueRows& source, const char* first, int64_t count,
                         const CodedQuery* queries, const float* scales, const float* offsets,
                         float* scores, int64_t score_row, Feed& feed) {
  const auto sum_keys = [&](auto vectors) {
    sum_coded_keys<Digits, Rows, decltype(vectors)::value>(source, first, count, queries, scores,
                                                           score_row, feed);
  };
  switch (code_chunks(source) * parts_of(source)) {
    case 1:
      sum_keys(std::integral_constant<int, 1>{});
      break;
    case 2:
      sum_keys(std::integral_constant<int, 2>{});
      break;
    case 3:
      sum_keys(std::integral_constant<int, 3>{});
      break;
    default:
      sum_keys(std::integral_constant<int, 4>{});
  }
  for (int r = 0; r < Rows; ++r) {
    const CodedQuery& query = queries[r];
    for (int64_t key = 0; key < count; key += lanes) {
      float* at = scores + r * score_row + key;
      const Floats shift = multiply(load(offsets + key), broadcast(query.sum));
      store(at, multiply_add(multiply(load(at), broadcast(query.step)), load(scales + key), shift));
    }
  }
}

// Steps that add_coded_run takes of its feed.
inline int64_t coded_value_steps(const AttentionCall& call, int64_t count, int64_t rows) {
  return (1 + rows) * 2 * code_chunks(call.value) * ((count + 3) / 4);
}

// Lays out the values of a run four keys side by side: [chunk][group of 4 keys][4 vectors].
inline void interleave_values(const KeyValueRows& source, const char* first, int64_t count,
                              std::uint8_t* out, Feed& feed) {
  const int64_t bytes = row_bytes(source);
  const int64_t groups = (count + 3) / 4;
  const int flip = flip_of(source);
  for (int64_t group = 0; group < groups; ++group) {
    if (group % feed_pace == 0) feed.step(feed_pace * 2 * code_chunks(source));
    const char* row[4];
    for (int i = 0; i < 4; ++i)
      row[i] = first + at_most(4 * group + i, count - 1) * source.rows.row;
    for (int64_t begin = 0; begin < bytes; begin += code_bytes) {
      Codes rows[4];
      Codes columns[4];
      for (int i = 0; i < 4; ++i)
        rows[i] = flip_codes(load_codes(row[i] + begin, bytes - begin), flip);
      interleave_rows(rows, columns);
      std::uint8_t* to = out + (begin / code_bytes * groups + group) * 4 * code_bytes;
      for (int i = 0; i < 4; ++i) store_codes(to + i * code_bytes, columns[i]);
    }
  }
}

// Adds, to one row of values, the products of its weights and a run of interleaved values.
template <int Digits>
void add_coded_values(const KeyValueRows& source, const std::uint8_t* interleaved, int64_t count,
                      const float* weights, const float* scales, const float* offsets, float factor,
                      float* values, Feed& feed) {
  const int64_t groups = (count + 3) / 4;
  constexpr int64_t stride = stream_stride;
  alignas(64) std::int8_t digits[Digits * stride];
  alignas(64) float scaled[stride];
  Floats top = zero();
  Floats shift = zero();
  for (int64_t i = 0; i < count; i += lanes) {
    const Floats weight = load(weights + i);
    const Floats x = multiply(weight, load(scales + i));
    store(scaled + i, x);
    top = larger(top, magnitude(x));
    shift = multiply_add(weight, load(offsets + i), shift);
  }
  const Steps steps = Steps::of(largest_lane(top), largest_integer<Digits>());
  for (int64_t i = 0; i < count; i += lanes) {
    store_digits<Digits>(multiply(load(scaled + i), broadcast(steps.per_unit)), digits + i, stride);
  }
  const Floats constant = broadcast(sum_lanes(shift));
  const Floats by = broadcast(factor);
  const Floats step = broadcast(steps.step);
  const auto add_columns = [&](float* to, Floats x) {
    store(to, multiply_add(load(to), by, multiply_add(x, step, constant)));
  };
  const int64_t chunks = code_chunks(source);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::uint8_t* from = interleaved + chunk * groups * 4 * code_bytes;
    if (source.element == Element::bits8) {
      Sums sums[Digits][4];
      for (auto& digit : sums) {
        for (Sums& sum : digit) sum = no_sums();
      }
      for (int64_t group = 0; group < groups; ++group) {
        if (group % feed_pace == 0) feed.step(feed_pace * 2);
        for (int j = 0; j < 4; ++j) {
          const Codes codes = load_codes(from + (4 * group + j) * code_bytes);
          for (int d = 0; d < Digits; ++d) {
            sums[d][j] =
                add_products(sums[d][j], codes, repeat_four(digits + d * stride + 4 * group));
          }
        }
      }
      Floats x[4];
      for (int j = 0; j < 4; ++j) x[j] = join_digits<Digits>(&sums[0][j], 4);
      order_columns(x);
      for (int j = 0; j < 4; ++j) {
        const int64_t column = chunk * code_bytes + j * lanes;
        if (column < source.width) add_columns(values + column, x[j]);
      }
    } else {
      Floats halves[2][4];
      // two vectors at a time, so that sums of both halves of all digits stay in registers
      for (int pair = 0; pair < 4; pair += 2) {
        Sums sums[2][Digits][2];
        for (auto& half : sums) {
          for (auto& digit : half) {
            for (Sums& sum : digit) sum = no_sums();
          }
        }
        for (int64_t group = 0; group < groups; ++group) {
          if (group % feed_pace == 0) feed.step(feed_pace);
          for (int j = 0; j < 2; ++j) {
            const Codes packed = load_codes(from + (4 * group + pair + j) * code_bytes);
            const Codes low = low_codes(packed);
            const Codes high = high_codes(packed);
            for (int d = 0; d < Digits; ++d) {
              const Codes digit = repeat_four(digits + d * stride + 4 * group);
              sums[0][d][j] = add_products(sums[0][d][j], low, digit);
              sums[1][d][j] = add_products(sums[1][d][j], high, digit);
            }
          }
        }
        for (int j = 0; j < 2; ++j) {
          for (int half = 0; half < 2; ++half) {
            halves[half][pair + j] = join_digits<Digits>(&sums[half][0][j], 2);
          }
        }
      }
      order_columns(halves[0]);
      order_columns(halves[1]);
      for (int j = 0; j < 4; ++j) {
        join_halves(halves[0][j], halves[1][j]);
        const int64_t column = 2 * chunk * code_bytes + 2 * j * lanes;
        if (column < source.width) add_columns(values + column, halves[0][j]);
        if (column + lanes < source.width) add_columns(values + column + lanes, halves[1][j]);
      }
    }
  }
}

// Adds, to all rows of values, the products of their weights and a run of values.
template <int Digits>
void add_coded_run(const KeyValueRows& source, const char* first, int64_t count, int64_t rows,
                   const float* weights, const float* scales, const float* offsets, void* memory,
                   const float* factors, float* values, int64_t stride, Feed& feed) {
  auto* interleaved = static_cast<std::uint8_t*>(memory);
  interleave_values(source, first, count, interleaved, feed);
  for (int64_t r = 0; r < rows; ++r) {
    add_coded_values<Digits>(source, interleaved, count, weights + r * stream_stride, scales,
                             offsets, factors[r], values + r * stride, feed);
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

#endif

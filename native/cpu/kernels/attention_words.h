// Keys and values of 8- or 4-bit codes, multiplied as words of 16 bits.
//
// A query row q becomes step * integers of one word where the query has 16 bits and two where it is
// float32, so that its error, at most step / 2 = max|q| / 2^16 or 2^31, is below that of rounding
// the codes' values to the query's type. Weights are treated alike, once per block of keys, after
// the scale of each value was multiplied into its weight. Products of words and codes are summed
// exactly in int32: at most attention_max_dim * 255 * 32767 < 2^31.
#pragma once

#include "kernels/attention_feed.h"
#include "kernels/attention_scales.h"

#if defined(TESSERAL_INT16_DOT)

#include <type_traits>

#include "simd/avx2_codes.h"
#include "simd/unroll.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

// Words of a number, by the type of queries.
constexpr int short_digits = 1;
constexpr int wide_digits = 2;

template <int Digits>
constexpr float largest_integer() {
  return Digits == 1 ? 32767.0f : 32767.0f * 32768;
}

template <int Digits>
inline Floats join_digits(Floats low, Floats high) {
  return Digits == 1 ? low : multiply_add(high, broadcast(32768), low);
}

// Bytes of the most words that a row of queries takes, and of what a run of values is laid out in.
constexpr int64_t coded_query_bytes = 2 * wide_digits * attention_max_dim;
constexpr int64_t coded_value_bytes = 0;

inline int64_t code_chunks(const KeyValueRows& source) {
  return (row_bytes(source) + code_bytes - 1) / code_bytes;
}
inline int codes_per_word(const KeyValueRows& source) { return 16 / bits_of(source.element); }

// The words of query rows, query_stride apart, in the order in which codes unfold:
// [digit][chunk][place in a word of codes][16].
constexpr int64_t query_stride = coded_query_bytes / 2;

struct CodedQuery {
  using Word = std::int16_t;
  Word* words;
  float step;
  float sum;

  template <int Digits>
  void encode(const KeyValueRows& keys, const float* query) {
    return keys.element == Element::bits8 ? encode_for<Digits, 8>(keys, query)
                                          : encode_for<Digits, 4>(keys, query);
  }

 private:
  template <int Digits, int Bits>
  void encode_for(const KeyValueRows& keys, const float* query) {
    constexpr int64_t per_word = 16 / Bits;
    const int64_t stride = code_chunks(keys) * per_word * code_words;
    const float largest = largest_of(query, keys.width);
    const Steps steps = Steps::of(largest, largest_integer<Digits>());
    step = largest != largest ? largest : steps.step;
    alignas(64) float ordered[attention_max_dim] = {};
    for (int64_t i = 0; i < keys.width; ++i) {
      const int64_t word = i / per_word;
      const int64_t place = word / code_words * per_word + i % per_word;
      ordered[place * code_words + word % code_words] = query[i];
    }
    Floats integers = zero();
    for (int64_t i = 0; i < stride; i += lanes) {
      const Floats x = multiply(load(ordered + i), broadcast(steps.per_unit));
      integers = add(integers, store_words<Digits>(x, words + i, stride));
    }
    sum = sum_lanes(integers) * step;
  }
};

// Adds the products of two keys' packed codes and the words of Rows queries, from place `Place` of
// the codes in their words on.
template <int Bits, int Place, int Rows, int Stride>
inline void add_places(const Codes (&packed)[2], const std::int16_t* words, Sums* sums) {
  if constexpr (Place < 16 / Bits) {
    const Codes codes[2] = {codes_in_words<Bits, Place>(packed[0]),
                            codes_in_words<Bits, Place>(packed[1])};
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Codes query = load_words(words + r * query_stride + Place * code_words);
      TESSERAL_UNROLL
      for (int k = 0; k < 2; ++k) {
        sums[r * Stride + k] = add_products(sums[r * Stride + k], codes[k], query);
      }
    }
    add_places<Bits, Place + 1, Rows, Stride>(packed, words, sums);
  }
}

// A chunk of packed codes of a row, of which there are `bytes` more.
template <bool Whole>
inline Codes read_codes(const char* p, int64_t bytes, int flip) {
  return flip_codes(Whole ? load_codes(p) : load_some_codes(p, bytes), flip);
}

// totals[r * n_keys + k] = sum over columns of one digit of query r and the codes of key k, of so
// many bytes.
template <int Bits, int Rows>
inline Floats sum_coded_keys(const char* const (&row)[lanes / Rows], int64_t bytes, int flip,
                             const std::int16_t* words) {
  constexpr int n_keys = lanes / Rows;
  Sums sums[lanes];
  TESSERAL_UNROLL
  for (Sums& sum : sums) sum = no_sums();
  const auto add_chunk = [&](auto whole, int64_t at) {
    constexpr bool Whole = decltype(whole)::value;
    TESSERAL_UNROLL
    for (int k = 0; k < n_keys; k += 2) {
      const Codes packed[2] = {read_codes<Whole>(row[k] + at, bytes - at, flip),
                               read_codes<Whole>(row[k + 1] + at, bytes - at, flip)};
      add_places<Bits, 0, Rows, n_keys>(packed, words + at / 2 * (16 / Bits), sums + k);
    }
  };
  int64_t at = 0;
  for (; at + code_bytes <= bytes; at += code_bytes) add_chunk(std::true_type{}, at);
  if (at < bytes) add_chunk(std::false_type{}, at);
  return floats_of(sum_each(sums));
}

// scores[r][key] = query r . key, for Rows rows and the keys of a run. Takes a step of `feed` for
// every key.
template <int Digits, int Bits, int Rows>
void multiply_coded_keys(const KeyValueRows& source, const char* first, int64_t count,
                         const CodedQuery* queries, const float* scales, const float* offsets,
                         float* scores, int64_t score_row, Feed& feed) {
  constexpr int n_keys = lanes / Rows;
  const int flip = flip_of(source);
  const int64_t bytes = row_bytes(source);
  const std::int16_t* words = queries->words;
  const int64_t digit = code_chunks(source) * (16 / Bits) * code_words;
  for (int64_t key = 0; key < count; key += n_keys) {
    feed.step(n_keys);
    const char* row[n_keys];
    for (int k = 0; k < n_keys; ++k) row[k] = first + at_most(key + k, count - 1) * source.rows.row;
    Floats totals = sum_coded_keys<Bits, Rows>(row, bytes, flip, words);
    if constexpr (Digits == 2) {
      totals = join_digits<2>(totals, sum_coded_keys<Bits, Rows>(row, bytes, flip, words + digit));
    }
    alignas(64) float joined[lanes];
    store(joined, totals);
    for (int r = 0; r < Rows; ++r) {
      std::memcpy(scores + r * score_row + key, joined + r * n_keys, n_keys * sizeof(float));
    }
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

template <int Digits, int Rows>
void multiply_coded_keys(const KeyValueRows& source, const char* first, int64_t count,
                         const CodedQuery* queries, const float* scales, const float* offsets,
                         float* scores, int64_t score_row, Feed& feed) {
  const auto multiply_by = source.element == Element::bits8 ? multiply_coded_keys<Digits, 8, Rows>
                                                            : multiply_coded_keys<Digits, 4, Rows>;
  multiply_by(source, first, count, queries, scales, offsets, scores, score_row, feed);
}

// Words from the weights of one row to those of the next.
constexpr int64_t weight_stride = stream_stride;

// The weights of Rows rows, each times the scale of its value, as words.
template <int Digits, int Rows>
struct CodedWeights {
  alignas(64) std::int16_t words[Digits][Rows][weight_stride];
  float step[Rows];
  float constant[Rows];  // what offsets add to every column

  void encode(int row, const float* weights, const float* scales, const float* offsets,
              int64_t count) {
    alignas(64) float scaled[stream_stride];
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
      const Floats x = multiply(load(scaled + i), broadcast(steps.per_unit));
      store_words<Digits>(x, words[0][row] + i, Rows * weight_stride);
    }
    step[row] = steps.step;
    constant[row] = sum_lanes(shift);
  }
};

// Parts of 32 columns that are summed at a time: a chunk of bytes, or of nibbles the first or the
// last 8 bytes of every 16 of a chunk.
inline int64_t value_parts(const KeyValueRows& source) {
  return code_chunks(source) * (source.element == Element::bits4 ? 2 : 1);
}

// Sums over the keys of a run of the codes of a part, from byte `begin` on, weighted by one digit
// of Rows rows: of bytes, vectors of four neighbours of each half; of nibbles, the two of every
// byte and the lower alone, in turns.
template <int Bits, int Rows, bool Last, bool Whole>
struct ValueSums {
  Sums sums[Rows][4];

  // Two rows of values, of which there are `bytes` more, and the pair of weights of each row.
  void add(const char* const (&rows)[2], int64_t bytes, int flip, const std::int16_t* words) {
    const Codes a = read_codes<Whole>(rows[0], bytes, flip);
    const Codes b = read_codes<Whole>(rows[1], bytes, flip);
    Codes codes[4];
    if constexpr (Bits == 8) {
      const Codes low = interleave_rows<false>(a, b);
      const Codes high = interleave_rows<true>(a, b);
      codes[0] = first_words(low);
      codes[1] = last_words(low);
      codes[2] = first_words(high);
      codes[3] = last_words(high);
    } else {
      const Codes both = interleave_rows<Last>(a, b);
      codes[0] = first_words(both);
      codes[1] = low_codes<Bits>(codes[0]);
      codes[2] = last_words(both);
      codes[3] = low_codes<Bits>(codes[2]);
    }
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Codes weights = repeat_two(words + r * weight_stride);
      TESSERAL_UNROLL
      for (int i = 0; i < 4; ++i) sums[r][i] = add_products(sums[r][i], codes[i], weights);
    }
  }

  // Takes a step of `feed` for every key.
  void run(const KeyValueRows& source, const char* first, int64_t count, int64_t begin,
           const std::int16_t* words, Feed& feed) {
    const int flip = flip_of(source);
    const int64_t bytes = row_bytes(source) - begin;
    const int64_t step = source.rows.row;
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) {
      TESSERAL_UNROLL
      for (int i = 0; i < 4; ++i) sums[r][i] = no_sums();
    }
    const char* p = first + begin;
    int64_t key = 0;
    for (; key + feed_pace <= count; key += feed_pace) {
      feed.step(feed_pace);
      TESSERAL_UNROLL
      for (int i = 0; i < feed_pace; i += 2) {
        add({p, p + step}, bytes, flip, words + key + i);
        p += 2 * step;
      }
    }
    for (; key < count; key += 2) {
      add({p, key + 1 < count ? p + step : p}, bytes, flip, words + key);
      p += 2 * step;
    }
  }
};

// The sums of one digit as floats in pairs of vectors, each of neighbouring columns, whose first
// columns follow one another by 8 and whose second ones are half a chunk further.
template <int Bits>
inline void order_sums(const Sums (&sums)[4], Floats (&columns)[4]) {
  if constexpr (Bits == 8) {
    TESSERAL_UNROLL
    for (int i = 0; i < 4; ++i) columns[i] = floats_of(sums[i]);
    join_lanes(columns[0], columns[1]);
    join_lanes(columns[2], columns[3]);
  } else {
    TESSERAL_UNROLL
    for (int i = 0; i < 4; i += 2) {
      columns[i] = floats_of(sums[i + 1]);
      columns[i + 1] = floats_of(shift_down<Bits>(subtract_sums(sums[i], sums[i + 1])));
      join_halves(columns[i], columns[i + 1]);
    }
  }
}

// Adds, to Rows rows of values, the products of their weights and a run of values.
template <int Digits, int Bits, int Rows, bool Last, bool Whole>
void add_coded_part(const KeyValueRows& source, const char* first, int64_t count, int64_t begin,
                    const CodedWeights<Digits, Rows>& weights, const float* factors, float* values,
                    int64_t stride, Feed& feed) {
  Floats columns[Digits][Rows][4];
  for (int d = 0; d < Digits; ++d) {
    ValueSums<Bits, Rows, Last, Whole> part;
    part.run(source, first, count, begin, weights.words[d][0], feed);
    TESSERAL_UNROLL
    for (int r = 0; r < Rows; ++r) order_sums<Bits>(part.sums[r], columns[d][r]);
  }
  const int64_t first_column = begin * (8 / Bits) + (Last ? 16 : 0);
  TESSERAL_UNROLL
  for (int r = 0; r < Rows; ++r) {
    TESSERAL_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t column = first_column + i / 2 * 8 + i % 2 * (Bits == 8 ? 16 : 32);
      if (column >= source.width) continue;
      const Floats x = join_digits<Digits>(columns[0][r][i], columns[Digits - 1][r][i]);
      const Floats added =
          multiply_add(x, broadcast(weights.step[r]), broadcast(weights.constant[r]));
      float* to = values + r * stride + column;
      store(to, multiply_add(load(to), broadcast(factors[r]), added));
    }
  }
}

template <int Digits, int Bits, int Rows>
void add_coded_rows(const KeyValueRows& source, const char* first, int64_t count,
                    const CodedWeights<Digits, Rows>& weights, const float* factors, float* values,
                    int64_t stride, Feed& feed) {
  const int64_t bytes = row_bytes(source);
  const auto add_part = [&](auto last, auto whole, int64_t begin) {
    add_coded_part<Digits, Bits, Rows, decltype(last)::value, decltype(whole)::value>(
        source, first, count, begin, weights, factors, values, stride, feed);
  };
  const auto add_parts = [&](auto whole, int64_t begin) {
    add_part(std::false_type{}, whole, begin);
    if constexpr (Bits == 4) add_part(std::true_type{}, whole, begin);
  };
  int64_t begin = 0;
  for (; begin + code_bytes <= bytes; begin += code_bytes) add_parts(std::true_type{}, begin);
  if (begin < bytes) add_parts(std::false_type{}, begin);
}

// Steps that add_coded_run takes of its feed.
inline int64_t coded_value_steps(const AttentionCall& call, int64_t count, int64_t rows) {
  const int64_t digits = call.element == Element::f32 ? wide_digits : short_digits;
  return digits * value_parts(call.value) * (rows / 2 + rows % 2) * count;
}

// Adds, to all rows of values, the products of their weights and a run of values.
template <int Digits>
void add_coded_run(const KeyValueRows& source, const char* first, int64_t count, int64_t rows,
                   const float* weights, const float* scales, const float* offsets, void*,
                   const float* factors, float* values, int64_t stride, Feed& feed) {
  const auto add_rows = [&](auto n_rows, int64_t row) {
    constexpr int Rows = decltype(n_rows)::value;
    CodedWeights<Digits, Rows> coded;
    for (int r = 0; r < Rows; ++r) {
      coded.encode(r, weights + (row + r) * stream_stride, scales, offsets, count);
    }
    const auto add = source.element == Element::bits8 ? add_coded_rows<Digits, 8, Rows>
                                                      : add_coded_rows<Digits, 4, Rows>;
    add(source, first, count, coded, factors + row, values + row * stride, stride, feed);
  };
  int64_t row = 0;
  for (; row + 2 <= rows; row += 2) add_rows(std::integral_constant<int, 2>{}, row);
  if (row < rows) add_rows(std::integral_constant<int, 1>{}, row);
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

#endif

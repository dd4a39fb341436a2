// What both attention kernels share: where rows lie, which keys a row sees, how scores are
// adjusted, and the softmax state of rows.
//
// State of a row: `limit`, the largest score met so far; `sum`, the sum of the weights
// 2^((score - limit) * unit); and `values`, the sum of the values under the same weights. States
// over disjoint keys merge by bringing both to the larger limit.
#pragma once

#include <cstdint>
#include <cstring>

#include "tesseral/attention.h"

#include TESSERAL_FLOATS

namespace tesseral::TESSERAL_TARGET {
namespace {

using std::int64_t;

constexpr float log2_e = 1.44269504088896340736f;
constexpr float infinity = __builtin_inff();

constexpr int64_t stream_block = 128;  // keys that are read in place at a time, at most
constexpr int64_t coded_block = 128;   // codes of keys that are
constexpr int64_t stream_stride = stream_block + lanes;

inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

inline const char* row_of(const Rows& rows, int64_t batch, int64_t head, int64_t row) {
  return static_cast<const char*>(rows.data) + batch * rows.batch + head * rows.head +
         row * rows.row;
}

// Keys [key, key + count) that lie at a constant stride.
struct KeyRun {
  int64_t batch;  // or block
  int64_t row;
  int64_t count;
};

inline KeyRun find_keys(const AttentionCall& call, const Sequence& sequence, int64_t key,
                        int64_t end) {
  if (sequence.blocks == nullptr) return {sequence.batch, sequence.kv_start + key, end - key};
  const int64_t inside = key % call.block_size;
  return {sequence.blocks[key / call.block_size], inside,
          at_most(end - key, call.block_size - inside)};
}

inline float load_one(Element element, const char* p) {
  if (element == Element::f32) {
    float x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return element == Element::bf16 ? float_of_bits(std::uint32_t{bits} << 16) : float_of_f16(bits);
}

inline Floats load_lanes(Element element, const char* p) {
  const auto* halves = reinterpret_cast<const std::uint16_t*>(p);
  if (element == Element::f32) return load(reinterpret_cast<const float*>(p));
  return element == Element::bf16 ? load_bf16(halves) : load_f16(halves);
}

inline Floats load_some(Element element, const char* p, int count) {
  const auto* halves = reinterpret_cast<const std::uint16_t*>(p);
  if (element == Element::f32) return load_part(reinterpret_cast<const float*>(p), count);
  return element == Element::bf16 ? load_bf16_part(halves, count) : load_f16_part(halves, count);
}

inline int64_t bytes_of(Element element) { return element == Element::f32 ? 4 : 2; }

// Asks for memory that is needed later.
inline void prefetch(const char* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// Scale and offset of a row of codes, for codes read as unsigned.
struct Dequantise {
  float scale;
  float offset;
};

inline int bits_of(Element element) {
  return element == Element::bits8 ? 8 : element == Element::bits4 ? 4 : 2;
}
inline bool is_coded(Element element) {
  return element == Element::bits8 || element == Element::bits4 || element == Element::bits2;
}

// Bytes of a row of keys or values.
inline int64_t row_bytes(const KeyValueRows& source) {
  if (!is_coded(source.element)) return source.width * bytes_of(source.element);
  return (source.width * bits_of(source.element) + 7) / 8;
}

inline Dequantise dequantise_of(const KeyValueRows& source, int64_t batch, int64_t head,
                                int64_t row) {
  const float scale = load_one(source.scale_element, row_of(source.scale, batch, head, row));
  if (source.offset.data != nullptr) {
    return {scale, load_one(source.scale_element, row_of(source.offset, batch, head, row))};
  }
  return {scale, -scale * static_cast<float>(1 << (bits_of(source.element) - 1))};
}

// Codes of a row as bytes; signed ones moved up by half their range.
inline void unpack_codes(const KeyValueRows& source, const std::uint8_t* packed,
                         std::uint8_t* codes) {
  const int bits = bits_of(source.element);
  const int flip = source.offset.data == nullptr ? 1 << (bits - 1) : 0;
  if (bits == 8) {
    for (int64_t i = 0; i < source.width; ++i)
      codes[i] = packed[i] ^ static_cast<std::uint8_t>(flip);
    return;
  }
  if (bits == 4) {  // by itself, so that compilers make vectors of it
    for (int64_t i = 0; i < (source.width + 1) / 2; ++i) {
      codes[2 * i] = static_cast<std::uint8_t>((packed[i] & 15) ^ flip);
      codes[2 * i + 1] = static_cast<std::uint8_t>((packed[i] >> 4) ^ flip);
    }
    return;
  }
  const int per_byte = 8 / bits;
  const int mask = (1 << bits) - 1;
  for (int64_t i = 0; i < round_up(source.width, per_byte) / per_byte; ++i) {
    for (int j = 0; j < per_byte; ++j) {
      codes[i * per_byte + j] = static_cast<std::uint8_t>((packed[i] >> (j * bits) & mask) ^ flip);
    }
  }
}

// One row of keys or values as float32, zeros after its width up to a multiple of the lanes.
inline void widen_row(const KeyValueRows& source, int64_t batch, int64_t head, int64_t row,
                      float* out) {
  const char* p = row_of(source.rows, batch, head, row);
  if (is_coded(source.element)) {
    alignas(64) std::uint8_t codes[attention_max_dim + 64];
    unpack_codes(source, reinterpret_cast<const std::uint8_t*>(p), codes);
    const Dequantise by = dequantise_of(source, batch, head, row);
    for (int64_t i = 0; i < source.width; i += lanes) {
      store(out + i, multiply_add(broadcast(by.scale), load_u8(codes + i), broadcast(by.offset)));
    }
    for (int64_t i = source.width; i < round_up(source.width, lanes); ++i) out[i] = 0;
    return;
  }
  const int64_t size = bytes_of(source.element);
  int64_t i = 0;
  for (; i + lanes <= source.width; i += lanes)
    store(out + i, load_lanes(source.element, p + i * size));
  if (i < source.width) {
    store(out + i, load_some(source.element, p + i * size, static_cast<int>(source.width - i)));
  }
}

// The state of the rows of a task, in memory of state_floats().
struct State {
  float* limit;
  float* sum;
  float* values;
  int64_t stride;  // floats from one row of values to the next

  State(const AttentionCall& call, float* memory, int64_t rows)
      : limit(memory),
        sum(memory + round_up(rows, lanes)),
        values(memory + 2 * round_up(rows, lanes)),
        stride(round_up(call.value.width, lanes)) {}

  static int64_t floats(const AttentionCall& call, int64_t rows) {
    return 2 * round_up(rows, lanes) + rows * round_up(call.value.width, lanes);
  }

  // Empties the state but for `values`, which may hold anything where `sum` is zero until finish().
  void start(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      limit[r] = -infinity;
      sum[r] = 0;
    }
  }
  void finish(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      if (sum[r] != 0) continue;
      for (int64_t i = 0; i < stride; i += lanes) store(values + r * stride + i, zero());
    }
  }
  void clear(int64_t rows) {
    start(rows);
    finish(rows);
  }
};

// A row of a task: a query of one head of the group, and the keys of the task that it sees.
struct Row {
  int64_t head;
  int64_t query;
  int64_t k_begin;
  int64_t k_end;
};

// The rows of a task one after the other, from any one on; a division finds only the first.
class RowWalk {
 public:
  RowWalk(const AttentionCall& call, const AttentionTask& task, int64_t row)
      : call_(call),
        task_(task),
        offset_(call.sequences[task.sequence].kv_len - call.sequences[task.sequence].q_len),
        head_(task.kv_head * group_of(call) + row / (task.q_end - task.q_begin)),
        query_(task.q_begin + row % (task.q_end - task.q_begin)) {}

  Row next() {
    const int64_t diagonal = query_ + offset_;
    const int64_t begin = at_least(task_.k_begin, diagonal - call_.left);
    const int64_t end = at_most(task_.k_end, diagonal + call_.right + 1);
    const Row row = {head_, query_, begin, at_least(begin, end)};
    if (++query_ == task_.q_end) {
      query_ = task_.q_begin;
      ++head_;
    }
    return row;
  }

 private:
  const AttentionCall& call_;
  const AttentionTask& task_;
  int64_t offset_;
  int64_t head_;
  int64_t query_;
};

inline Row find_row(const AttentionCall& call, const AttentionTask& task, int64_t row) {
  return RowWalk(call, task, row).next();
}

// The keys that some row of a task sees.
struct KeyRange {
  int64_t begin;
  int64_t end;
};

inline KeyRange visible_keys(const AttentionCall& call, const AttentionTask& task) {
  const int64_t begin = find_row(call, task, 0).k_begin;
  return {begin, find_row(call, task, task.q_end - task.q_begin - 1).k_end};
}

// Asks for keys [begin, end) and the first `rows` queries of a task, a share at a time, so that
// reading them will not wait for memory.
class Ahead {
 public:
  Ahead(const AttentionCall& call, const AttentionTask& task, int64_t begin, int64_t end,
        int64_t rows)
      : call_(call),
        task_(task),
        walk_(call, task, 0),
        begin_(begin),
        end_(end),
        rows_(rows),
        key_(begin) {}

  // Brings what has been asked for to the share `done` of `all`.
  void reach(int64_t done, int64_t all) {
    const Sequence& sequence = call_.sequences[task_.sequence];
    const KeyValueRows* const sources[] = {&call_.key, &call_.value};
    const int64_t stop = begin_ + (end_ - begin_) * at_most(done, all) / all;
    while (key_ < stop) {
      const KeyRun run = find_keys(call_, sequence, key_, stop);
      for (int64_t i = 0; i < run.count; ++i) {
        for (const KeyValueRows* source : sources) {
          prefetch(row_of(source->rows, run.batch, task_.kv_head, run.row + i), row_bytes(*source));
        }
      }
      key_ += run.count;
    }
    for (const int64_t last = rows_ * at_most(done, all) / all; row_ < last; ++row_) {
      const Row row = walk_.next();
      prefetch(row_of(call_.query, sequence.batch, row.head, sequence.q_start + row.query),
               call_.key.width * bytes_of(call_.element));
    }
  }

 private:
  const AttentionCall& call_;
  const AttentionTask& task_;
  RowWalk walk_;
  int64_t begin_;
  int64_t end_;
  int64_t rows_;
  int64_t key_;
  int64_t row_ = 0;
};

// Whether pairs of bfloat16 are multiplied as they are: keys, values and queries all must be.
inline bool multiplies_pairs(const AttentionCall& call) {
#if defined(TESSERAL_BF16_DOT)
  return call.bf16_dot && call.element == Element::bf16 && call.key.element == Element::bf16 &&
         call.value.element == Element::bf16;
#else
  (void)call;
  return false;
#endif
}

inline bool has_dense_mask(const AttentionCall& call) { return call.mask.rows.data != nullptr; }

// Whether scores need more than a factor and an interval of visible keys.
inline bool adjusts_scores(const AttentionCall& call) {
  return call.softcap != 0 || call.slopes != nullptr || has_dense_mask(call) || !(call.scale > 0);
}

// Turns scores, adjusted or not, into powers of two.
inline float unit_of(const AttentionCall& call) {
  return adjusts_scores(call) ? log2_e : call.scale * log2_e;
}

inline Floats tanh_of(Floats x) {
  const Floats size = magnitude(x);
  const Floats t = exp2_of_negative(multiply(size, broadcast(-2 * log2_e)));
  const Floats one = broadcast(1);
  return with_sign_of(divide(subtract(one, t), add(one, t)), x);
}

// One entry of a dense mask, as a number to add.
inline float mask_entry(const DenseMask& mask, const char* row, int64_t key) {
  const char* p = row + key * mask.column;
  if (mask.element == Element::boolean) return *p ? 0 : -infinity;
  return load_one(mask.element, p);
}

inline void add_dense_mask(const AttentionCall& call, const AttentionTask& task, const Row& row,
                           float* scores, int64_t begin, int64_t end) {
  const DenseMask& mask = call.mask;
  const int64_t batch = call.sequences[task.sequence].batch;
  const char* p = row_of(mask.rows, batch, row.head, row.query);
  int64_t key = begin;
  if (mask.element != Element::boolean && mask.column == bytes_of(mask.element)) {
    for (; key + lanes <= end; key += lanes) {
      store(scores + key, add(load(scores + key), load_lanes(mask.element, p + key * mask.column)));
    }
  } else if (mask.element == Element::boolean && mask.column == 1) {
    for (; key < end; ++key) scores[key] = p[key] ? scores[key] : -infinity;
  }
  for (; key < end; ++key) scores[key] += mask_entry(mask, p, key);
}

// Applies scale, softcap, linear bias and dense mask to the scores of keys [begin, end), which lie
// at `scores + key`. May also touch scores up to the next multiple of the lanes.
inline void adjust_scores(const AttentionCall& call, const AttentionTask& task, const Row& row,
                          float* scores, int64_t begin, int64_t end) {
  const Sequence& sequence = call.sequences[task.sequence];
  const auto diagonal = row.query + sequence.kv_len - sequence.q_len;
  const float slope =
      call.slopes == nullptr ? 0 : call.slopes[task.sequence * call.slopes_sequence + row.head];
  for (int64_t key = begin; key < end; key += lanes) {
    Floats x = multiply(load(scores + key), broadcast(call.scale));
    if (call.softcap != 0) {
      x = multiply(tanh_of(divide(x, broadcast(call.softcap))), broadcast(call.softcap));
    }
    if (call.slopes != nullptr) {
      const Floats ahead = add(broadcast(static_cast<float>(key - diagonal)), count_up());
      x = multiply_add(broadcast(-slope), magnitude(ahead), x);
    }
    store(scores + key, x);
  }
  if (has_dense_mask(call)) add_dense_mask(call, task, row, scores, begin, end);
}

// Hides the scores of keys [begin, end) that the row does not see.
inline void hide_scores(const Row& row, float* scores, int64_t begin, int64_t end) {
  for (int64_t key = begin; key < at_most(row.k_begin, end); ++key) scores[key] = -infinity;
  for (int64_t key = at_least(row.k_end, begin); key < end; ++key) scores[key] = -infinity;
}

// Whether the rounding of a power of two is small beside 1. Further from zero, as under masks of
// the lowest number, scores are subtracted before they are multiplied.
inline bool is_near_zero(float power) { return __builtin_fabsf(power) < 0x1p16f; }

// What sums under an old limit take under a new one.
inline float factor_between(float before, float after, float unit) {
  if (before == -infinity) return 0;
  const float from = before * unit;
  const float to = after * unit;
  const bool near = is_near_zero(from) && is_near_zero(to);
  return __builtin_exp2f(near ? from - to : (before - after) * unit);
}

// Raises the limit of a row to that of its new scores; returns the factor that the sums of the
// row so far take.
inline float raise_limit(const float* scores, int64_t count, float unit, float* limit) {
  Floats top[4] = {broadcast(-infinity), broadcast(-infinity), broadcast(-infinity),
                   broadcast(-infinity)};
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    for (int j = 0; j < 4; ++j) top[j] = larger(top[j], load(scores + i + j * lanes));
  }
  for (; i < count; i += lanes) top[0] = larger(top[0], load(scores + i));
  const float largest = largest_lane(larger(larger(top[0], top[1]), larger(top[2], top[3])));
  const float before = *limit;
  if (!(largest > before)) return 1;
  *limit = largest;
  return factor_between(before, largest, unit);
}

// What to subtract from scores times unit. A row that has seen nothing has no limit yet; from
// scores far from zero the limit is taken here.
inline float take_limit(float* scores, int64_t count, float unit, float limit) {
  if (limit == -infinity) return 0;
  const float power = limit * unit;
  if (is_near_zero(power)) return power;
  for (int64_t i = 0; i < count; ++i) scores[i] -= limit;
  return 0;
}

// Weights of a row in place of its scores, whose count is a multiple of two vectors; the sum of
// all. As pairs they take the first half of the row.
template <bool Pairs>
inline float exponentiate(float* scores, int64_t count, float unit, float limit) {
  const Floats by = broadcast(unit);
  const Floats minus = broadcast(-limit);
  Floats sum[2] = {zero(), zero()};
  for (int64_t i = 0; i < count; i += 2 * lanes) {
    Floats weights[2];
    for (int j = 0; j < 2; ++j) {
      weights[j] = exp2_of_negative(multiply_add(load(scores + i + j * lanes), by, minus));
      sum[j] = add(sum[j], weights[j]);
    }
#if defined(TESSERAL_BF16_DOT)
    if constexpr (Pairs) {
      store(scores + i / 2, narrow_to_pairs(weights[0], weights[1]));
      continue;
    }
#endif
    for (int j = 0; j < 2; ++j) store(scores + i + j * lanes, weights[j]);
  }
  return sum_lanes(add(sum[0], sum[1]));
}

// A limit as a natural logarithm, rounded where factor_between rounds it.
inline double logarithm_of(const AttentionCall& call, float limit) {
  const float unit = unit_of(call);
  const double natural = adjusts_scores(call) ? 1 : call.scale;
  const double power = limit * unit;
  return is_near_zero(limit * unit) ? power / unit * natural : limit * natural;
}

// Divides, adds the sink, and writes output and lse of the rows of a task.
inline void write_output(const AttentionCall& call, const AttentionTask& task, State state) {
  const Sequence& sequence = call.sequences[task.sequence];
  const bool needs_limit = call.sinks != nullptr || call.lse.data != nullptr;
  RowWalk walk(call, task, 0);
  for (int64_t r = 0; r < rows_of(call, task); ++r) {
    const Row row = walk.next();
    // in double precision: gradients take exp(score - lse), where the rounding of a large lse
    // counts
    double sum = state.sum[r];
    double limit = needs_limit ? logarithm_of(call, state.limit[r]) : 0;
    double factor = 1;
    if (call.sinks != nullptr && call.sinks[row.head] != -infinity) {
      const double sink = call.sinks[row.head];
      const double top = sink > limit ? sink : limit;
      factor = __builtin_exp(limit - top);
      sum = sum * factor + __builtin_exp(sink - top);
      limit = top;
    }
    // comparing this way round lets NaN through
    const Floats inverse = broadcast(sum == 0 ? 0 : static_cast<float>(factor / sum));
    const float* values = state.values + r * state.stride;
    const int64_t at = sequence.q_start + row.query;
    char* out = const_cast<char*>(row_of(call.output, sequence.batch, row.head, at));
    for (int64_t i = 0; i < call.value.width; i += lanes) {
      const Floats x = multiply(load(values + i), inverse);
      const int count = static_cast<int>(at_most(lanes, call.value.width - i));
      char* p = out + i * bytes_of(call.element);
      auto* halves = reinterpret_cast<std::uint16_t*>(p);
      if (call.element == Element::f32) {
        store_part(reinterpret_cast<float*>(p), x, count);
      } else if (call.element == Element::bf16) {
        store_bf16_part(halves, x, count);
      } else {
        store_f16_part(halves, x, count);
      }
    }
    if (call.lse.data != nullptr) {
      const float lse = sum == 0 ? -infinity : static_cast<float>(limit + __builtin_log(sum));
      std::memcpy(const_cast<char*>(row_of(call.lse, sequence.batch, row.head, at)), &lse,
                  sizeof lse);
    }
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET

// The attention kernels against the definition in plain loops of doubles.
//
// Arrays, scratch memory and states have their exact size on the heap, so that sanitizers see a
// read or write past an end.
#include "checks/check_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cpu/attention.h"
#include "cpu/dispatch.h"

namespace {

using namespace tesseral;
using std::int64_t;

constexpr double infinity = HUGE_VAL;

std::mt19937 generator;

int64_t draw(int64_t below) { return static_cast<int64_t>(generator() % below); }
template <class T>
T one_of(std::initializer_list<T> choices) {
  return choices.begin()[draw(static_cast<int64_t>(choices.size()))];
}

bool is_coded(Element element) {
  return element == Element::bits8 || element == Element::bits4 || element == Element::bits2;
}
int bits_of(Element element) {
  switch (element) {
    case Element::f32:
      return 32;
    case Element::bf16:
    case Element::f16:
      return 16;
    case Element::bits4:
      return 4;
    case Element::bits2:
      return 2;
    default:
      return 8;
  }
}
int fraction_bits(Element element) {
  return element == Element::f32 ? 23 : element == Element::bf16 ? 7 : 10;
}

// Numbers of an element type, as bits: sign, exponent (with its bias), fraction.
std::uint32_t random_number(Element element, int lowest_exponent, int exponents) {
  const int fraction = fraction_bits(element);
  const std::uint32_t bias = element == Element::f16 ? 15 : 127;
  const std::uint32_t exponent =
      bias + static_cast<std::uint32_t>(lowest_exponent + draw(exponents));
  const std::uint32_t sign = static_cast<std::uint32_t>(draw(2)) << (bits_of(element) - 1);
  return sign | exponent << fraction | static_cast<std::uint32_t>(draw(int64_t{1} << fraction));
}
std::uint32_t minus_infinity(Element element) {
  return element == Element::f32 ? 0xFF800000u : element == Element::bf16 ? 0xFF80u : 0xFC00u;
}
double value_of(Element element, std::uint32_t bits) {
  const int fraction = fraction_bits(element);
  const int exponents = bits_of(element) - 1 - fraction;
  const int exponent = static_cast<int>(bits >> fraction) & ((1 << exponents) - 1);
  const bool negative = bits >> (bits_of(element) - 1) & 1;
  if (exponent == (1 << exponents) - 1) {
    if (bits & ((1u << fraction) - 1)) return NAN;
    return negative ? -infinity : infinity;
  }
  const double low = static_cast<double>(bits & ((1u << fraction) - 1));
  const double hidden = exponent == 0 ? 0 : std::ldexp(1.0, fraction);
  const int bias = (1 << (exponents - 1)) - 1;
  const double size = std::ldexp(low + hidden, std::max(exponent, 1) - bias - fraction);
  return negative ? -size : size;
}

// An array (batch, head, row) of rows, with gaps after them or the other way round, if drawn so.
struct Store {
  std::unique_ptr<unsigned char[]> memory;
  Rows rows;

  Store(int64_t batch, int64_t heads, int64_t length, int64_t row_bytes, int64_t item) {
    const int64_t step = row_bytes + item * one_of<int64_t>({0, 0, 3});
    const bool heads_first = draw(2);
    const int64_t n_rows = batch * heads * length;
    const int64_t size = n_rows == 0 ? 0 : (n_rows - 1) * step + row_bytes;
    memory.reset(new unsigned char[static_cast<std::size_t>(size)]);
    for (int64_t i = 0; i < size; ++i) memory[static_cast<std::size_t>(i)] = 0xFF;  // NaN
    rows.batch = heads * length * step;
    rows.head = (heads_first ? length : 1) * step;
    rows.row = (heads_first ? 1 : heads) * step;
    unsigned char* first = memory.get();
    if (n_rows > 0 && draw(3) == 0) {
      first += (length - 1) * rows.row;
      rows.row = -rows.row;
    }
    rows.data = first;
  }

  unsigned char* at(int64_t batch, int64_t head, int64_t row) const {
    return static_cast<unsigned char*>(const_cast<void*>(rows.data)) + batch * rows.batch +
           head * rows.head + row * rows.row;
  }
  void put(int64_t batch, int64_t head, int64_t row, int64_t column, Element element,
           std::uint32_t bits) const {
    const int64_t item = bits_of(element) / 8;
    std::memcpy(at(batch, head, row) + column * item, &bits, static_cast<std::size_t>(item));
  }
  std::uint32_t get(int64_t batch, int64_t head, int64_t row, int64_t column,
                    Element element) const {
    const int64_t item = bits_of(element) / 8;
    std::uint32_t bits = 0;
    std::memcpy(&bits, at(batch, head, row) + column * item, static_cast<std::size_t>(item));
    return bits;
  }
  double number(int64_t batch, int64_t head, int64_t row, int64_t column, Element element) const {
    return value_of(element, get(batch, head, row, column, element));
  }
};

// Queries, keys or values with their numbers, or codes with scales and perhaps offsets.
struct Side {
  Element element;
  int64_t width;
  Element scale_element;
  Store rows;
  Store scale;
  Store offset;
  bool has_offset;
  int64_t heads;
  int64_t length;
  std::vector<double> numbers;

  Side(Element element, int64_t batch, int64_t heads, int64_t length, int64_t width,
       Element scale_element)
      : element(element),
        width(width),
        scale_element(scale_element),
        rows(batch, heads, length, (width * bits_of(element) + 7) / 8,
             is_coded(element) ? 1 : bits_of(element) / 8),
        scale(batch, heads, is_coded(element) ? length : 0, bits_of(scale_element) / 8,
              bits_of(scale_element) / 8),
        offset(batch, heads, is_coded(element) ? length : 0, bits_of(scale_element) / 8,
               bits_of(scale_element) / 8),
        has_offset(draw(2)),
        heads(heads),
        length(length) {
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t r = 0; r < length; ++r) {
          fill(b, h, r);
          for (int64_t i = 0; i < width; ++i) numbers.push_back(decode(b, h, r, i));
        }
      }
    }
  }

  const double* row(int64_t b, int64_t h, int64_t r) const {
    return numbers.data() + ((b * heads + h) * length + r) * width;
  }

  void fill(int64_t b, int64_t h, int64_t r) {
    if (!is_coded(element)) {
      for (int64_t i = 0; i < width; ++i)
        rows.put(b, h, r, i, element, random_number(element, -4, 5));
      return;
    }
    for (int64_t i = 0; i < (width * bits_of(element) + 7) / 8; ++i) {
      rows.at(b, h, r)[i] = static_cast<unsigned char>(generator());
    }
    scale.put(b, h, r, 0, scale_element, random_number(scale_element, -bits_of(element), 2));
    offset.put(b, h, r, 0, scale_element, random_number(scale_element, -2, 2));
  }

  double decode(int64_t b, int64_t h, int64_t r, int64_t i) const {
    if (!is_coded(element)) return rows.number(b, h, r, i, element);
    const int bits = bits_of(element);
    int code = rows.at(b, h, r)[i * bits / 8] >> (i * bits % 8) & ((1 << bits) - 1);
    const double by = scale.number(b, h, r, 0, scale_element);
    if (has_offset) return by * code + offset.number(b, h, r, 0, scale_element);
    if (code >= 1 << (bits - 1)) code -= 1 << bits;
    return by * code;
  }

  KeyValueRows bound() const {
    KeyValueRows bound;
    bound.element = element;
    bound.width = width;
    bound.rows = rows.rows;
    bound.scale_element = scale_element;
    if (is_coded(element)) bound.scale = scale.rows;
    if (is_coded(element) && has_offset) bound.offset = offset.rows;
    return bound;
  }
};

// One call, drawn at random around what its number asks for.
class Case {
 public:
  explicit Case(int number)
      : element_(one_of_by(number, {Element::f32, Element::bf16, Element::f16})),
        side_(one_of_by(number / 3,
                        {element_, Element::bits8, Element::bits4, element_, Element::bits2})),
        head_dim_(one_of_by(number / 3, {8, 40, 72, 80, 128, 256, 4, 27})),
        value_dim_(draw(2) ? head_dim_ : one_of<int64_t>({8, 40, 72, 256, 33})),
        kv_heads_(1 + draw(2)),
        q_heads_(kv_heads_ * one_of<int64_t>({1, 2, 3, 5})),
        q_len_(one_of<int64_t>({1, 1, 3, 16, 27})),
        kv_len_(one_of<int64_t>({0, 1, 31, 45, 145})),
        block_size_(draw(3) == 0 ? one_of<int64_t>({1, 16, 50}) : 0),
        query_(element_, block_size_ ? 1 : batch, q_heads_, length(q_len_), head_dim_,
               Element::f32),
        key_(make_side(head_dim_)),
        value_(make_side(value_dim_)),
        output_(block_size_ ? 1 : batch, q_heads_, length(q_len_), value_dim_ * item(), item()),
        lse_(block_size_ ? 1 : batch, q_heads_, length(q_len_), 4, 4),
        mask_element_(one_of({Element::boolean, element_, Element::f32})),
        mask_sides_{draw(2) ? 1 : batch, draw(2) ? 1 : q_heads_, draw(2) ? 1 : q_len_},
        mask_(mask_sides_[0], mask_sides_[1], mask_sides_[2], 2 * kv_len_ * mask_item(),
              mask_item()) {
    draw_rules();
    draw_sequences();
    draw_mask();
    draw_plan();
  }

  // Runs the kernels of a target in memory of exact size, or as callers do if n_threads > 0.
  int run(const Target& target, int n_threads) {
    call_.sequences = sequences_.data();
    call_.n_sequences = batch;
    clear();
    if (n_threads > 0) {
      attention(target, call_, n_threads);
    } else {
      for (int64_t s = 0; s < batch; ++s) {
        for (int64_t head = 0; head < kv_heads_; ++head) run_strips(target.attention, s, head);
      }
    }
    const int wrong = count_wrong();
    if (wrong != 0) print(target, wrong);
    return wrong != 0;
  }

 private:
  static constexpr int64_t batch = 2;

  template <class T>
  static T one_of_by(int number, std::initializer_list<T> choices) {
    return choices.begin()[static_cast<std::size_t>(number) % choices.size()];
  }
  int64_t item() const { return bits_of(element_) / 8; }
  int64_t mask_item() const { return bits_of(mask_element_) / 8; }
  // Rows of the arrays: sequences that lie one after the other share one batch entry.
  int64_t length(int64_t of_sequence) const {
    return block_size_ ? batch * of_sequence : of_sequence;
  }
  int64_t blocks_a_sequence() const { return (kv_len_ + block_size_ - 1) / block_size_; }

  Side make_side(int64_t width) {
    const Element scale = one_of({Element::f32, Element::bf16, Element::f16});
    if (block_size_ == 0) return Side(side_, batch, kv_heads_, kv_len_, width, scale);
    return Side(side_, batch * blocks_a_sequence(), kv_heads_, block_size_, width, scale);
  }

  void draw_rules() {
    call_.element = element_;
    call_.query = query_.rows.rows;
    call_.output = output_.rows;
    if (draw(4) != 0) call_.lse = lse_.rows;
    call_.key = key_.bound();
    call_.value = value_.bound();
    call_.q_heads = q_heads_;
    call_.kv_heads = kv_heads_;
    call_.block_size = block_size_;
    call_.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim_)));
    if (draw(4) == 0) call_.softcap = 3;
    if (draw(2)) call_.right = draw(3);
    if (draw(3) == 0) call_.left = draw(60);
    for (int64_t i = 0; i < batch * q_heads_; ++i) slopes_.push_back(0.01f * draw(20));
    for (int64_t i = 0; i < q_heads_; ++i) sinks_.push_back(static_cast<float>(draw(5)) - 2);
    if (draw(4) == 0) {
      call_.slopes = slopes_.data();
      call_.slopes_sequence = draw(2) ? q_heads_ : 0;
    }
    if (draw(4) == 0) call_.sinks = sinks_.data();
    call_.poison = true;
  }

  void draw_sequences() {
    sequences_.resize(batch);
    if (block_size_) {
      for (int64_t i = 0; i < batch * blocks_a_sequence(); ++i) blocks_.push_back(i);
      std::shuffle(blocks_.begin(), blocks_.end(), generator);
    }
    for (int64_t s = 0; s < batch; ++s) {
      Sequence& sequence = sequences_[static_cast<std::size_t>(s)];
      sequence.batch = block_size_ ? 0 : s;
      sequence.q_start = block_size_ ? s * q_len_ : 0;
      sequence.q_len = q_len_;
      sequence.kv_len = kv_len_;
      if (block_size_) sequence.blocks = blocks_.data() + s * blocks_a_sequence();
    }
  }

  void draw_mask() {
    if (block_size_ || draw(2)) return;
    DenseMask& mask = call_.mask;
    mask.element = mask_element_;
    mask.column = mask_item() * one_of<int64_t>({0, 1, 1, 2});
    mask.rows = mask_.rows;
    if (mask_sides_[0] == 1) mask.rows.batch = 0;
    if (mask_sides_[1] == 1) mask.rows.head = 0;
    if (mask_sides_[2] == 1) mask.rows.row = 0;
    for (int64_t b = 0; b < mask_sides_[0]; ++b) {
      for (int64_t h = 0; h < mask_sides_[1]; ++h) {
        for (int64_t r = 0; r < mask_sides_[2]; ++r) fill_mask(b, h, r);
      }
    }
  }

  void fill_mask(int64_t b, int64_t h, int64_t r) {
    for (int64_t i = 0; i < 2 * kv_len_; ++i) {
      const bool seen = draw(4) != 0;
      if (mask_element_ == Element::boolean) {
        mask_.at(b, h, r)[i] = seen;
      } else {
        mask_.put(b, h, r, i, mask_element_,
                  seen ? random_number(mask_element_, -4, 5) : minus_infinity(mask_element_));
      }
    }
  }

  void draw_plan() {
    const int64_t group = q_heads_ / kv_heads_;
    call_.strip_rows = group * one_of<int64_t>({2, 5, 12, 64});
    call_.key_block = one_of<int64_t>({1, 40, 64, 130, attention_max_key_block});
    call_.split_keys = draw(3) == 0 ? 20 + draw(60) : 0;
    call_.stream_rows = draw(2) ? 32 : 0;
    call_.bf16_dot = draw(2);
  }

  void clear() {
    for (int64_t b = 0; b < (block_size_ ? 1 : batch); ++b) {
      for (int64_t h = 0; h < q_heads_; ++h) {
        for (int64_t r = 0; r < length(q_len_); ++r) {
          std::memset(output_.at(b, h, r), 0xFF, static_cast<std::size_t>(value_dim_ * item()));
          std::memset(lse_.at(b, h, r), 0xFF, 4);
        }
      }
    }
  }

  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  using Floats = std::unique_ptr<float, Free>;
  static Floats allocate(int64_t floats) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, static_cast<std::size_t>(floats) * sizeof(float)) != 0) std::abort();
    return Floats(static_cast<float*>(p));
  }

  void run_strips(const AttentionKernels& kernels, int64_t sequence, int64_t head) {
    const int64_t step = call_.strip_rows / (q_heads_ / kv_heads_);
    for (int64_t q = 0; q < q_len_; q += step) {
      AttentionTask task;
      task.sequence = sequence;
      task.kv_head = head;
      task.q_begin = q;
      task.q_end = std::min(q + step, q_len_);
      std::vector<AttentionTask> tasks;
      std::vector<Floats> states;
      const int64_t keys = call_.split_keys ? call_.split_keys : std::max<int64_t>(kv_len_, 1);
      for (int64_t k = 0; k < std::max<int64_t>(kv_len_, 1); k += keys) {
        task.k_begin = k;
        task.k_end = std::min(k + keys, kv_len_);
        tasks.push_back(task);
      }
      for (AttentionTask& each : tasks) {
        if (tasks.size() > 1) {
          states.push_back(allocate(kernels.state_floats(call_, rows_of(call_, each))));
          each.state = states.back().get();
        }
        kernels.run(call_, each, allocate(kernels.scratch_floats(call_)).get());
      }
      if (tasks.size() > 1) kernels.merge(call_, tasks.data(), static_cast<int64_t>(tasks.size()));
    }
  }

  // Key or value k of a sequence.
  const double* row(const Side& side, int64_t s, int64_t q_head, int64_t k) const {
    const int64_t head = q_head / (q_heads_ / kv_heads_);
    if (block_size_ == 0) return side.row(s, head, k);
    const int64_t block = sequences_[static_cast<std::size_t>(s)].blocks[k / block_size_];
    return side.row(block, head, k % block_size_);
  }

  double score(int64_t s, int64_t head, int64_t q, int64_t k, const double* query) const {
    const int64_t ahead = k - (q + kv_len_ - q_len_);
    if (-ahead > call_.left || ahead > call_.right) return -infinity;
    const double* key = row(key_, s, head, k);
    double sum = 0;
    for (int64_t i = 0; i < head_dim_; ++i) sum += query[i] * key[i];
    sum *= call_.scale;
    if (call_.softcap != 0) sum = std::tanh(sum / call_.softcap) * call_.softcap;
    if (call_.slopes != nullptr) {
      sum -= call_.slopes[s * call_.slopes_sequence + head] * std::abs(static_cast<double>(ahead));
    }
    if (call_.mask.rows.data == nullptr) return sum;
    const Rows& rows = call_.mask.rows;
    const auto* p = static_cast<const unsigned char*>(rows.data) + s * rows.batch +
                    head * rows.head + q * rows.row + k * call_.mask.column;
    if (mask_element_ == Element::boolean) return *p ? sum : -infinity;
    std::uint32_t bits = 0;
    std::memcpy(&bits, p, static_cast<std::size_t>(mask_item()));
    return sum + value_of(mask_element_, bits);
  }

  int count_wrong() const {
    int wrong = 0;
    for (int64_t s = 0; s < batch; ++s) {
      for (int64_t head = 0; head < q_heads_; ++head) {
        for (int64_t q = 0; q < q_len_; ++q) wrong += !row_is_right(s, head, q);
      }
    }
    return wrong;
  }

  bool row_is_right(int64_t s, int64_t head, int64_t q) const {
    const int64_t b = block_size_ ? 0 : s;
    const int64_t at = block_size_ ? s * q_len_ + q : q;
    const std::vector<double>& expected = expected_row(s, head, q);
    const double half = element_ == Element::f32 ? 0 : element_ == Element::bf16 ? 0.02 : 2e-3;
    const double tolerance = 1e-4 + half;
    for (int64_t i = 0; i < value_dim_; ++i) {
      const double x = output_.number(b, head, at, i, element_);
      const double e = expected[static_cast<std::size_t>(i)];
      if (!(std::abs(x - e) <= tolerance * (1 + std::abs(e)))) return false;
    }
    if (call_.lse.data == nullptr) return true;
    const double lse = lse_.number(b, head, at, 0, Element::f32);
    const double e = expected.back();
    return e == -infinity ? lse == e : std::abs(lse - e) <= 2e-4 * (1 + std::abs(e));
  }

  // Output and, last, lse of a row; worked out once for all targets.
  const std::vector<double>& expected_row(int64_t s, int64_t head, int64_t q) const {
    expected_.resize(static_cast<std::size_t>(batch * q_heads_ * q_len_));
    std::vector<double>& expected =
        expected_[static_cast<std::size_t>((s * q_heads_ + head) * q_len_ + q)];
    if (!expected.empty()) return expected;
    const double* query =
        block_size_ ? query_.row(0, head, s * q_len_ + q) : query_.row(s, head, q);
    std::vector<double> scores;
    double top = call_.sinks ? call_.sinks[head] : -infinity;
    for (int64_t k = 0; k < kv_len_; ++k) {
      scores.push_back(score(s, head, q, k, query));
      top = std::max(top, scores.back());
    }
    expected.assign(static_cast<std::size_t>(value_dim_ + 1), 0.0);
    expected.back() = -infinity;
    if (top == -infinity) return expected;
    double sum = call_.sinks ? std::exp(call_.sinks[head] - top) : 0;
    for (int64_t k = 0; k < kv_len_; ++k) {
      const double weight = std::exp(scores[static_cast<std::size_t>(k)] - top);
      sum += weight;
      if (weight == 0) continue;
      const double* value = row(value_, s, head, k);
      for (int64_t i = 0; i < value_dim_; ++i) {
        expected[static_cast<std::size_t>(i)] += weight * value[i];
      }
    }
    for (int64_t i = 0; i < value_dim_; ++i) expected[static_cast<std::size_t>(i)] /= sum;
    expected.back() = top + std::log(sum);
    return expected;
  }

  void print(const Target& target, int wrong) const {
    std::fprintf(stderr,
                 "%s: %d rows of attention wrong: element %d, keys %d, %ld queries, %ld keys, "
                 "%ld / %ld heads, dims %ld and %ld, blocks of %ld, strips of %ld, key blocks of "
                 "%ld, split %ld, stream %ld, bf16_dot %d, softcap %g, window %ld %ld, slopes %d, "
                 "sinks %d, mask %d\n",
                 target.name, wrong, static_cast<int>(element_), static_cast<int>(side_),
                 static_cast<long>(q_len_), static_cast<long>(kv_len_), static_cast<long>(q_heads_),
                 static_cast<long>(kv_heads_), static_cast<long>(head_dim_),
                 static_cast<long>(value_dim_), static_cast<long>(block_size_),
                 static_cast<long>(call_.strip_rows), static_cast<long>(call_.key_block),
                 static_cast<long>(call_.split_keys), static_cast<long>(call_.stream_rows),
                 call_.bf16_dot, static_cast<double>(call_.softcap), static_cast<long>(call_.left),
                 static_cast<long>(call_.right), call_.slopes != nullptr, call_.sinks != nullptr,
                 call_.mask.rows.data == nullptr ? -1 : static_cast<int>(mask_element_));
  }

  Element element_;
  Element side_;
  int64_t head_dim_;
  int64_t value_dim_;
  int64_t kv_heads_;
  int64_t q_heads_;
  int64_t q_len_;
  int64_t kv_len_;
  int64_t block_size_;
  Side query_;
  Side key_;
  Side value_;
  Store output_;
  Store lse_;
  Element mask_element_;
  int64_t mask_sides_[3];
  Store mask_;
  std::vector<float> slopes_;
  std::vector<float> sinks_;
  std::vector<int64_t> blocks_;
  std::vector<Sequence> sequences_;
  AttentionCall call_;
  mutable std::vector<std::vector<double>> expected_;
};

}  // namespace

int tesseral::check_attention() {
  constexpr int n_cases = 120;  // every mixture of types, codes and head dimensions
  constexpr int n_threads = 3;
  constexpr int on_threads = 8;  // every so many cases
#if defined(__SANITIZE_THREAD__)
  constexpr int step = on_threads;  // what one thread does is for the other sanitizers
#else
  constexpr int step = 1;
#endif
  int failures = 0;
  for (int number = 0; number < n_cases; number += step) {
    generator.seed(static_cast<unsigned>(number));
    Case one(number);
    for (const Target& candidate : targets()) {
      const Target* target = find_target(candidate.name);
      if (target == nullptr) continue;
      failures += one.run(*target, 0);
      if (number % on_threads == 0) failures += one.run(*target, n_threads);
    }
  }
  return failures;
}

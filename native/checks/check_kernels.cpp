// The native code against plain loops, built with sanitizers and without
// Python.
//
// Buffers have their exact size on the heap, so that a read or write past the
// end is caught.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "checks/check_attention.h"
#include "checks/check_weight_only.h"
#include "cpu/dispatch.h"
#include "cpu/linear_int4.h"
#include "cpu/quantize_rows.h"
#include "cpu/threads.h"

// The thread sanitizer would end a child that starts threads; ours does so on
// purpose.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  return "die_after_fork=0";
}

namespace {

using namespace tesseral;

int failures = 0;

#define EXPECT(condition)                                                  \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                          \
    }                                                                      \
  } while (false)

std::vector<std::string> runnable(const CpuWords& words) {
  std::vector<std::string> names;
  for (const Target& target : targets()) {
    if (missing(target, features_of(words)).empty()) names.emplace_back(target.name);
  }
  return names;
}

// Those of some names whose kernels were built into this program.
std::vector<std::string> built(const std::vector<std::string>& names) {
  std::vector<std::string> found;
  for (const std::string& name : names) {
    for (const Target& target : targets()) {
      if (target.name == name) found.push_back(name);
    }
  }
  return found;
}

void a_target_runs_only_if_the_system_saves_its_registers() {
  const std::vector<std::string> only_scalar = {"scalar"};
  EXPECT(runnable(CpuWords{}) == only_scalar);
  if (targets().size() == 1) return;  // not an x86 machine
  CpuWords words;
  words.leaf1_ecx = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29;  // fma, osxsave, avx, f16c
  words.leaf7_ebx = 1u << 5 | 1u << 16 | 1u << 17 | 3u << 30;   // avx2, avx512 f, dq, bw, vl
  words.xcr0 = 0xE7;
  EXPECT(runnable(words) == built({"avx512", "avx2", "scalar"}));
  words.xcr0 = 0x07;  // the wide registers are not saved
  EXPECT(runnable(words) == built({"avx2", "scalar"}));
  words.xcr0 = 0x67;  // half of them are
  EXPECT(runnable(words) == built({"avx2", "scalar"}));
  words.xcr0 = 0x03;
  EXPECT(runnable(words) == only_scalar);
}

int nibble(const std::vector<std::uint8_t>& row_major, std::int64_t bytes, std::int64_t row,
           std::int64_t i) {
  const int byte = row_major[static_cast<std::size_t>(row * bytes + i / 2)];
  const int code = i % 2 ? byte >> 4 : byte & 15;
  return code < 8 ? code : code - 16;
}

// Values: 0 random, 1 all at the extreme that makes sums largest, 2 the same
// with signs mixed.
void check_linear(const Target& target, std::int64_t m, std::int64_t n, std::int64_t k, int values,
                  int n_threads) {
  std::mt19937 random(static_cast<unsigned>(m + 10 * n + 100 * k));
  const std::int64_t bytes = (k + 1) / 2;
  std::vector<std::int8_t> activations(static_cast<std::size_t>(m * k));
  std::vector<std::uint8_t> weight(static_cast<std::size_t>(n * bytes));
  std::vector<std::int32_t> out(static_cast<std::size_t>(m * n), 0x55555555);
  for (auto& a : activations) {
    a = static_cast<std::int8_t>(values == 0 ? random() : values == 1 || random() % 2 ? -128 : 127);
  }
  for (auto& w : weight) {
    w = static_cast<std::uint8_t>(values == 0 ? random() : values == 1 ? 0x77 : 0x87);
  }
  LinearInt4Weight matrix;
  matrix.codes = weight.data();
  matrix.out = out.data();
  matrix.n = n;
  LinearInt4 call;
  call.activations = activations.data();
  call.weights = &matrix;
  call.n_weights = 1;
  call.m = m;
  call.k = call.stride = call.group = k;
  EXPECT(linear_int4(target, call, n_threads) == Status::ok);
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      std::int64_t sum = 0;
      for (std::int64_t t = 0; t < k; ++t) {
        sum += activations[static_cast<std::size_t>(i * k + t)] * nibble(weight, bytes, j, t);
      }
      wrong += out[static_cast<std::size_t>(i * n + j)] != sum;
    }
  }
  if (wrong != 0) {
    std::fprintf(stderr, "%s: %ld of %ld wrong at m=%ld n=%ld k=%ld values=%d threads=%d\n",
                 target.name, static_cast<long>(wrong), static_cast<long>(m * n),
                 static_cast<long>(m), static_cast<long>(n), static_cast<long>(k), values,
                 n_threads);
    ++failures;
  }
  if (m > linear_int4_streamed_rows) return;
  std::vector<std::int8_t> filled(activations.size());
  std::vector<std::int32_t> again(out.size());
  call.activations = filled.data();
  matrix.out = again.data();
  const auto fill = [&](std::int64_t row) {
    std::copy_n(activations.data() + row * k, k, filled.data() + row * k);
    return Status::ok;
  };
  EXPECT(linear_int4(target, call, n_threads, fill) == Status::ok);
  EXPECT(again == out);
  const auto fail = [](std::int64_t) { return Status::invalid; };
  EXPECT(linear_int4(target, call, n_threads, fail) == Status::invalid);
}

// Two weights that read the same rows, with scales for every group and a bias.
void check_scaled_linear(const Target& target, std::int64_t m, std::int64_t k, std::int64_t group,
                         LinearOutput output, int n_threads) {
  const std::int64_t sizes[] = {70, 3};
  const std::int64_t bytes = (k + 1) / 2;
  const std::int64_t groups = k / group;
  std::mt19937 random(static_cast<unsigned>(m + 100 * k + group));
  const auto draw = [&] { return 0.5f + static_cast<float>(random() % 1000) / 1000; };
  std::vector<std::int8_t> activations(static_cast<std::size_t>(m * k));
  for (auto& a : activations) a = static_cast<std::int8_t>(random());
  std::vector<float> activation_scale(static_cast<std::size_t>(m));
  for (float& scale : activation_scale) scale = draw();
  std::vector<std::uint8_t> codes[2];
  std::vector<float> scale[2], bias[2], out[2];
  std::vector<std::uint16_t> short_out[2];
  LinearInt4Weight weights[2];
  for (int i = 0; i < 2; ++i) {
    const auto n = static_cast<std::size_t>(sizes[i]);
    codes[i].resize(n * static_cast<std::size_t>(bytes));
    for (auto& c : codes[i]) c = static_cast<std::uint8_t>(random());
    scale[i].resize(n * static_cast<std::size_t>(groups));
    for (float& x : scale[i]) x = draw();
    bias[i].resize(n);
    for (float& x : bias[i]) x = draw();
    out[i].assign(output == LinearOutput::f32 ? static_cast<std::size_t>(m) * n : 0, -1.0f);
    short_out[i].assign(output == LinearOutput::f32 ? 0 : static_cast<std::size_t>(m) * n, 0xFFFF);
    weights[i].codes = codes[i].data();
    weights[i].scale = scale[i].data();
    weights[i].bias = i == 0 ? bias[i].data() : nullptr;
    weights[i].out = output == LinearOutput::f32 ? static_cast<void*>(out[i].data())
                                                 : static_cast<void*>(short_out[i].data());
    weights[i].n = sizes[i];
  }
  LinearInt4 call;
  call.activations = activations.data();
  call.activation_scale = activation_scale.data();
  call.weights = weights;
  call.n_weights = 2;
  call.m = m;
  call.k = call.stride = k;
  call.group = group;
  call.output = output;
  EXPECT(linear_int4(target, call, n_threads) == Status::ok);
  for (int i = 0; i < 2; ++i) {
    for (std::int64_t row = 0; row < m; ++row) {
      for (std::int64_t column = 0; column < sizes[i]; ++column) {
        double sum = 0;
        double size = 0;
        for (std::int64_t t = 0; t < k; ++t) {
          const double product =
              activations[static_cast<std::size_t>(row * k + t)] *
              nibble(codes[i], bytes, column, t) *
              double{scale[i][static_cast<std::size_t>(column * groups + t / group)]};
          sum += product;
          size += std::abs(product);
        }
        const double a = activation_scale[static_cast<std::size_t>(row)];
        const double b = i == 0 ? bias[i][static_cast<std::size_t>(column)] : 0.0f;
        const auto at = static_cast<std::size_t>(row * sizes[i] + column);
        double found;
        if (output == LinearOutput::f32) {
          found = out[i][at];
        } else {
          const std::uint32_t bits = std::uint32_t{short_out[i][at]} << 16;
          float value;
          std::memcpy(&value, &bits, sizeof value);
          found = value;
        }
        const double precision = output == LinearOutput::f32 ? 1e-6 : 5e-3;
        EXPECT(std::abs(found - (sum * a + b)) <= precision * (size * a + std::abs(b)));
      }
    }
  }
}

void every_target_scales_its_sums() {
  for (const Target& candidate : targets()) {
    const Target* target = find_target(candidate.name);
    if (target == nullptr) continue;
    for (const std::int64_t m : {1, 3, 8, 13, 20, 49}) {
      for (const LinearOutput output : {LinearOutput::f32, LinearOutput::bf16}) {
        check_scaled_linear(*target, m, 129, 129, output, 1);
        check_scaled_linear(*target, m, 96, 16, output, 2);
        check_scaled_linear(*target, m, 64, 32, output, 1);
        check_scaled_linear(*target, m, 192, 64, output, 1);
        check_scaled_linear(*target, m, 1280, 128, output, 3);
        check_scaled_linear(*target, m, 1536, 768, output, 1);
      }
    }
  }
}

// Against a row in doubles, in buffers of their exact size.
void check_rows(const Target& target, std::int64_t m, std::int64_t left, std::int64_t right,
                bool with_left, bool with_right, int n_threads) {
  std::mt19937 random(static_cast<unsigned>(m + 10 * left + 1000 * right));
  const auto draw = [&](std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& x : values) x = static_cast<float>(random() % 2001) / 1000 - 1;
    return values;
  };
  const std::int64_t n = left * right;
  const std::vector<float> rows = draw(m * n);
  const std::vector<float> first = draw(left * left);
  const std::vector<float> second = draw(right * right);
  const std::vector<float> clip = {1, 1};
  std::vector<std::int8_t> codes(static_cast<std::size_t>(m * n), 99);
  std::vector<float> scale(static_cast<std::size_t>(m), -1);
  QuantizeRows call;
  call.rows = rows.data();
  call.stride = call.codes_stride = n;
  call.m = m;
  call.left = left;
  call.right = right;
  call.left_factor = with_left ? first.data() : nullptr;
  call.right_factor = with_right ? second.data() : nullptr;
  call.clip = clip.data();
  call.bits = 8;
  call.codes = codes.data();
  call.scale = scale.data();
  EXPECT(quantize_rows(target, call, n_threads) == Status::ok);
  for (std::int64_t row = 0; row < m; ++row) {
    const double step = scale[static_cast<std::size_t>(row)];
    for (std::int64_t i = 0; i < n; ++i) {
      double value = 0;
      for (std::int64_t a = 0; a < left; ++a) {
        for (std::int64_t b = 0; b < right; ++b) {
          const double p =
              with_left ? first[static_cast<std::size_t>(a * left + i / right)] : a == i / right;
          const double q =
              with_right ? second[static_cast<std::size_t>(b * right + i % right)] : b == i % right;
          value += p * q * rows[static_cast<std::size_t>(row * n + a * right + b)];
        }
      }
      const double found = step * codes[static_cast<std::size_t>(row * n + i)];
      EXPECT(std::abs(found - value) <= 0.501 * std::abs(step));
    }
  }
}

// Rows of bfloat16, whose products may be of pairs: codes of 8 bits within those roundings.
void check_short_rows(const Target& target, std::int64_t m, std::int64_t left, std::int64_t right,
                      bool with_right) {
  std::mt19937 random(static_cast<unsigned>(m + 10 * left + 1000 * right));
  const auto draw = [&] { return static_cast<float>(random() % 2001) / 1000 - 1; };
  const std::int64_t n = left * right;
  const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
  std::vector<std::uint16_t> rows(at(m * n));
  for (auto& x : rows)
    x = static_cast<std::uint16_t>(0x3F00 | (random() % 256) | random() % 2 << 15);
  const auto value = [&](std::int64_t i) {
    const std::uint32_t bits = std::uint32_t{rows[at(i)]} << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return double{x};
  };
  std::vector<float> first(at(left * left)), second(at(right * right));
  for (float& x : first) x = draw();
  for (float& x : second) x = draw();
  const std::vector<float> clip = {1, 1};
  std::vector<std::int8_t> codes(at(m * n), 99);
  std::vector<float> scale(at(m), -1);
  QuantizeRows call;
  call.element = RowElement::bf16;
  call.rows = rows.data();
  call.stride = call.codes_stride = n;
  call.m = m;
  call.left = left;
  call.right = right;
  call.left_factor = first.data();
  call.right_factor = with_right ? second.data() : nullptr;
  call.clip = clip.data();
  call.bits = 8;
  call.codes = codes.data();
  call.scale = scale.data();
  EXPECT(quantize_rows(target, call, 2) == Status::ok);
  for (std::int64_t row = 0; row < m; ++row) {
    std::vector<double> middle(at(n)), sizes(at(n));
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t b = 0; b < right; ++b) {
        const double q = with_right ? double{second[at(b * right + i % right)]} : b == i % right;
        const double product = q * value(row * n + i / right * right + b);
        middle[at(i)] += product;
        sizes[at(i)] += std::abs(product);
      }
    }
    for (std::int64_t i = 0; i < n; ++i) {
      double sum = 0;
      double size = 0;
      for (std::int64_t a = 0; a < left; ++a) {
        const double p = first[at(a * left + i / right)];
        sum += p * middle[at(a * right + i % right)];
        size += std::abs(p) * sizes[at(a * right + i % right)];
      }
      const double step = std::abs(double{scale[at(row)]});
      const double found = scale[at(row)] * codes[at(row * n + i)];
      EXPECT(std::abs(found - sum) <= 0.51 * step + 0x1p-7 * size);
    }
  }
}

void every_target_transforms_rows() {
  for (const Target& candidate : targets()) {
    const Target* target = find_target(candidate.name);
    if (target == nullptr) continue;
    for (const std::int64_t left : {1, 3, 13}) {
      for (const std::int64_t right : {1, 7, 16, 33}) {
        for (const int factors : {0, 1, 2, 3}) {
          check_rows(*target, 3, left, right, (factors & 1) != 0, (factors & 2) != 0, 1);
        }
      }
    }
    check_rows(*target, 300, 12, 16, true, true, 3);
    for (const std::int64_t left : {2, 7, 16, 33, 48}) {
      check_short_rows(*target, 3, left, 32, true);
      check_short_rows(*target, 2, left, 96, false);
    }
  }
}

void every_target_is_exact_at_every_edge() {
  for (const Target& candidate : targets()) {
    const Target* target = find_target(candidate.name);
    if (target == nullptr) continue;
    for (const std::int64_t m : {1, 2, 4, 5, 9}) {
      for (const std::int64_t n : {1, 3, 4, 9}) {
        for (const std::int64_t k : {1, 2, 31, 64, 65, 127, 128, 129, 1023}) {
          for (const int values : {0, 1, 2}) check_linear(*target, m, n, k, values, 1);
        }
      }
    }
    check_linear(*target, 300, 110, 200, 0,
                 3);                                 // several tiles both ways, on threads
    for (const std::int64_t m : {16, 17, 32, 33}) {  // tiles of rows, and what is left of them
      for (const int values : {0, 1, 2}) check_linear(*target, m, 300, 1090, values, 1);
    }
    check_linear(*target, 1, 1500, 4100, 1, 3);
  }
}

void sizes_out_of_range_are_refused() {
  const Target& target = targets().back();
  LinearInt4Weight weight;
  LinearInt4 good;
  good.k = good.stride = good.group = 64;
  good.weights = &weight;
  good.n_weights = 1;
  EXPECT(linear_int4(target, good, 1) == Status::ok);  // no rows, no columns
  const auto refused = [&](auto change, int n_threads) {
    LinearInt4 call = good;
    change(call);
    return linear_int4(target, call, n_threads) == Status::invalid;
  };
  EXPECT(refused([](LinearInt4&) {}, 0));
  EXPECT(refused([](LinearInt4& c) { c.k = c.group = c.stride = 0; }, 1));
  EXPECT(refused([](LinearInt4& c) { c.k = c.group = c.stride = linear_int4_max_k + 1; }, 1));
  EXPECT(refused([](LinearInt4& c) { c.stride = 63; }, 1));
  EXPECT(refused([](LinearInt4& c) { c.group = 24; }, 1));
  EXPECT(refused([](LinearInt4& c) { c.group = 32; }, 1));  // sums have no scales
  EXPECT(refused([](LinearInt4& c) { c.n_weights = 0; }, 1));
  weight.n = -1;
  EXPECT(refused([](LinearInt4&) {}, 1));
}

void reading_depends_on_every_byte_and_on_nothing_past_them() {
  for (const Target& candidate : targets()) {
    const Target* target = find_target(candidate.name);
    if (target == nullptr) continue;
    for (const std::size_t bytes : {0, 1, 63, 64, 511, 512, 513, 1500}) {
      std::vector<std::uint8_t> data(bytes, 1);
      const auto read = [&] {
        return target->ceilings.read(data.data(), static_cast<std::int64_t>(bytes));
      };
      const std::uint64_t whole = read();
      for (std::uint8_t& byte : data) {
        byte = 2;
        EXPECT(read() != whole);
        byte = 1;
      }
    }
  }
}

bool each_index_once(std::int64_t n_tasks, int n_threads) {
  std::vector<int> seen(static_cast<std::size_t>(n_tasks), 0);
  bool workers_fit = true;
  parallel_for(n_tasks, n_threads, [&](std::int64_t index, int worker) {
    ++seen[static_cast<std::size_t>(index)];
    if (worker < 0 || worker >= n_threads) workers_fit = false;
  });
  return workers_fit && std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; });
}

void a_job_runs_each_index_once() {
  for (int repeat = 0; repeat < 500; ++repeat) {
    EXPECT(each_index_once(repeat % 17, 1 + repeat % 5));
  }
}

void two_callers_do_not_wait_for_one_another() {
  std::vector<std::thread> callers;
  std::vector<int> good(4, 0);
  for (std::size_t i = 0; i < good.size(); ++i) {
    callers.emplace_back([&good, i] {
      for (int repeat = 0; repeat < 200; ++repeat) good[i] += each_index_once(9, 3);
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT(std::all_of(good.begin(), good.end(), [](int n) { return n == 200; }));
}

// Each of two tasks waits for the other to start, which takes two threads.
bool two_threads_meet() {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  std::atomic<int> arrived{0};
  std::atomic<bool> alone{false};
  parallel_for(2, 2, [&](std::int64_t, int) {
    ++arrived;
    while (arrived < 2 && !alone) {
      std::this_thread::yield();
      if (std::chrono::steady_clock::now() > deadline) alone = true;
    }
  });
  return !alone;
}

void a_forked_child_starts_threads_of_its_own() {
  EXPECT(two_threads_meet());
  const pid_t child = fork();
  if (child == 0) _exit(two_threads_meet() ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT(status == 0);
}

}  // namespace

void attention_is_right_at_every_edge() { EXPECT(check_attention() == 0); }

int main() {
  a_target_runs_only_if_the_system_saves_its_registers();
  every_target_is_exact_at_every_edge();
  every_target_scales_its_sums();
  every_target_transforms_rows();
  attention_is_right_at_every_edge();
  EXPECT(check_weight_only() == 0);
  sizes_out_of_range_are_refused();
  reading_depends_on_every_byte_and_on_nothing_past_them();
  a_job_runs_each_index_once();
  two_callers_do_not_wait_for_one_another();
  a_forked_child_starts_threads_of_its_own();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

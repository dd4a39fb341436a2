#include "checks/check_weight_only.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/weight_only.h"

namespace {

using namespace tesseral;
using std::int64_t;

float of_bf16(std::uint16_t half) {
  const std::uint32_t bits = std::uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::uint16_t to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<std::uint16_t>(bits >> 16);
}

struct Shape {
  int64_t m, n, k, group;
};

// In buffers of their exact size, against doubles.
int check(const Target& target, const Shape& shape, RowElement element, int n_threads) {
  const auto [m, n, k, group] = shape;
  std::mt19937 random(static_cast<unsigned>(m + 10 * n + 100 * k));
  const auto draw = [&] { return static_cast<float>(random() % 2000) / 1000 - 1; };
  const int64_t bytes = (k + 1) / 2;
  const int64_t groups = k / group;
  std::vector<std::uint16_t> halves(static_cast<std::size_t>(m * k));
  for (auto& x : halves) x = to_bf16(draw());
  std::vector<float> rows;
  for (const auto x : halves) rows.push_back(of_bf16(x));
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(n * bytes));
  for (auto& c : codes) c = static_cast<std::uint8_t>(random());
  std::vector<float> scale(static_cast<std::size_t>(n * groups));
  for (auto& s : scale) s = draw();
  std::vector<float> bias(static_cast<std::size_t>(n));
  for (auto& b : bias) b = draw();
  std::vector<float> out(static_cast<std::size_t>(m * n), NAN);
  const LinearInt4Weight weight = {codes.data(), scale.data(), bias.data(), out.data(), n};
  WeightOnly call;
  call.element = element;
  call.rows = element == RowElement::f32 ? static_cast<const void*>(rows.data())
                                         : static_cast<const void*>(halves.data());
  call.stride = call.k = k;
  call.weights = &weight;
  call.n_weights = 1;
  call.m = m;
  call.group = group;
  if (weight_only(target, call, n_threads) != Status::ok) return 1;
  int wrong = 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = bias[static_cast<std::size_t>(j)];
      double size = std::abs(sum);
      for (int64_t t = 0; t < k; ++t) {
        const int byte = codes[static_cast<std::size_t>(j * bytes + t / 2)];
        const int code = ((t % 2 ? byte >> 4 : byte & 15) ^ 8) - 8;
        const double product = double{rows[static_cast<std::size_t>(i * k + t)]} * code *
                               scale[static_cast<std::size_t>(j * groups + t / group)];
        sum += product;
        size += std::abs(product);
      }
      const double found = out[static_cast<std::size_t>(i * n + j)];
      wrong += !(std::abs(found - sum) <= 1e-6 * static_cast<double>(k) * size);
    }
  }
  if (wrong != 0) {
    std::fprintf(stderr, "%s: %d wrong at m=%ld n=%ld k=%ld group=%ld\n", target.name, wrong,
                 static_cast<long>(m), static_cast<long>(n), static_cast<long>(k),
                 static_cast<long>(group));
  }
  return wrong != 0;
}

}  // namespace

namespace tesseral {

int check_weight_only() {
  int failures = 0;
  for (const Target& candidate : targets()) {
    const Target* const target = find_target(candidate.name);
    if (target == nullptr) continue;
    for (const RowElement element : {RowElement::f32, RowElement::bf16}) {
      for (const int64_t m : {1, 2, 3, 7, 9, 20, 49}) {
        for (const Shape& shape :
             {Shape{m, 1, 1, 1}, Shape{m, 5, 129, 129}, Shape{m, 70, 96, 16}, Shape{m, 3, 192, 64},
              Shape{m, 2, 2304, 384}, Shape{m, 2, 2177, 2177}, Shape{m, 290, 200, 200}}) {
          failures += check(*target, shape, element, 2);
        }
      }
      WeightOnly refused;
      refused.element = element;
      failures += weight_only(*target, refused, 1) != Status::invalid;
    }
  }
  return failures;
}

}  // namespace tesseral

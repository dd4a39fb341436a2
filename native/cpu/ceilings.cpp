#include "ceilings.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>

#include "threads.h"

namespace tesseral {
namespace {

using std::int64_t;

constexpr int64_t longest_chunk = 16 << 20;  // a task of reading
constexpr int64_t shortest_chunk = 1 << 20;  // long enough for the prefetchers

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Products products_of(const CeilingKernels& kernels, const std::string& kind) {
  if (kind == "fma_fp32") return kernels.fma_fp32;
  if (kind == "dot_bf16") return kernels.dot_bf16;
  if (kind == "dot_int8") return kernels.dot_int8;
  throw std::invalid_argument("there are no products " + kind);
}

}  // namespace

Rate measure_products(const Target& target, const std::string& kind, int64_t rounds,
                      int n_threads) {
  const Products products = products_of(target.ceilings, kind);
  if (products == nullptr) return {};
  std::atomic<int64_t> operations{0};
  std::atomic<float> kept{0};
  const Stopwatch watch;
  parallel_for(n_threads, n_threads, [&](int64_t, int) {
    float sink = 0;
    operations += rounds * products(rounds, &sink);
    kept = sink;
  });
  return {static_cast<double>(operations.load()), watch.seconds()};
}

Rate measure_read(const Target& target, const std::uint8_t* data, int64_t bytes, int n_threads) {
  std::atomic<std::uint64_t> kept{0};
  const int64_t chunk_bytes = std::clamp(bytes / (4 * n_threads), shortest_chunk, longest_chunk);
  const Stopwatch watch;
  parallel_for((bytes + chunk_bytes - 1) / chunk_bytes, n_threads, [&](int64_t chunk, int) {
    const int64_t begin = chunk * chunk_bytes;
    kept += target.ceilings.read(data + begin, std::min(chunk_bytes, bytes - begin));
  });
  return {static_cast<double>(bytes), watch.seconds()};
}

}  // namespace tesseral

#include "pairs.h"

#include <algorithm>
#include <chrono>

namespace tesseral {

bool pairs_pay(const Target& target) {
  if (target.ceilings.dot_bf16 == nullptr) return false;
  static const bool pays = [&] {
    const auto best = [](Products products) {
      double fastest = 0;
      for (int i = 0; i < 5; ++i) {
        float sink = 0;
        const auto start = std::chrono::steady_clock::now();
        const auto operations = static_cast<double>(products(2000, &sink));
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        fastest = std::max(fastest, operations / took.count());
      }
      return fastest;
    };
    return best(target.ceilings.dot_bf16) > 1.2 * best(target.ceilings.fma_fp32);
  }();
  return pays;
}

}  // namespace tesseral

// Memory for kernels, and how many parts cover a whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace tesseral {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

// Uninitialised and aligned to a cache line. Throws std::bad_alloc.
template <class T>
Buffer<T> allocate(std::int64_t count) {
  constexpr std::size_t alignment = 64;
  const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
  void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(p));
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace tesseral

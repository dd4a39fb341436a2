// Products from registers alone and a sum over memory: what no kernel can be faster than.
//
// The one kernel that is about instructions and not about operations, so it names them itself.
// Chains of dependent products are many enough to hide the latency of each (4 or 5 cycles on two
// ports), and few enough to stay in registers.

#include "tesseral/ceilings.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AMX_TILE__)
#include "simd/amx_tiles.h"
#endif

namespace tesseral::TESSERAL_TARGET {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint64_t;
using std::uint8_t;

#if defined(__AVX512F__)

constexpr int n_chains = 16;  // of 32 registers
using Floats = __m512;
using Ints = __m512i;
constexpr int n_lanes = 16;
Floats every(float x) { return _mm512_set1_ps(x); }
Ints every_int(int32_t x) { return _mm512_set1_epi32(x); }
Floats multiply_add(Floats x, Floats a, Floats b) { return _mm512_fmadd_ps(x, a, b); }
Ints load(const uint8_t* p) { return _mm512_loadu_si512(p); }
Ints add(Ints x, Ints y) { return _mm512_add_epi64(x, y); }
void store(void* p, Ints x) { _mm512_storeu_si512(p, x); }
void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }

#elif defined(__AVX2__)

constexpr int n_chains = 12;  // of 16 registers
using Floats = __m256;
using Ints = __m256i;
constexpr int n_lanes = 8;
Floats every(float x) { return _mm256_set1_ps(x); }
Ints every_int(int32_t x) { return _mm256_set1_epi32(x); }
Floats multiply_add(Floats x, Floats a, Floats b) { return _mm256_fmadd_ps(x, a, b); }
Ints load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const Ints*>(p)); }
Ints add(Ints x, Ints y) { return _mm256_add_epi64(x, y); }
void store(void* p, Ints x) { _mm256_storeu_si256(static_cast<Ints*>(p), x); }
void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }

#else

constexpr int n_chains = 8;
constexpr int n_lanes = 4;
struct Floats {
  float lane[n_lanes];
};
struct Ints {
  uint64_t lane[2];
};
Floats every(float x) { return {{x, x, x, x}}; }
Ints every_int(int32_t) { return {{0, 0}}; }
Floats multiply_add(Floats x, const Floats& a, const Floats& b) {
  for (int i = 0; i < n_lanes; ++i) x.lane[i] = x.lane[i] * a.lane[i] + b.lane[i];
  return x;
}
Ints load(const uint8_t* p) {
  Ints x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
Ints add(Ints x, const Ints& y) {
  for (int i = 0; i < 2; ++i) x.lane[i] += y.lane[i];
  return x;
}
void store(void* p, const Ints& x) { __builtin_memcpy(p, &x, sizeof x); }
void store(float* p, const Floats& x) { __builtin_memcpy(p, &x, sizeof x); }

#endif

// Applies `step`, which does `per_lane` operations in each lane, to every chain in every round.
template <class Vector, class Step>
int64_t run_chains(Vector start, int64_t rounds, int per_lane, float* sink, Step step) {
  Vector chains[n_chains];
  for (Vector& chain : chains) chain = start;
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < n_chains; ++i) chains[i] = step(chains[i]);
  }
  for (const Vector& chain : chains) {
    float lanes[n_lanes];
    store(lanes, chain);
    for (const float lane : lanes) *sink += lane;
  }
  return int64_t{n_chains} * n_lanes * per_lane;
}

int64_t fma_fp32(int64_t rounds, float* sink) {
  float factor = 0.5f;
  __asm__ volatile("" : "+m"(factor));  // or the compiler finds that x * 0.5 + 0.5 stays at 1
  const Floats half = every(factor);
  return run_chains(every(1.0f), rounds, 2, sink,
                    [&](const Floats& x) { return multiply_add(x, half, half); });
}

#if defined(__AMX_TILE__)
constexpr int64_t n_tile_sums =
    4;  // of 8 tiles: two share each operand, as in a product of matrices

// Multiplies two pairs of tiles with one another in every round.
#define TESSERAL_TILE_PRODUCTS(product)  \
  const Tiles tiles;                     \
  _tile_zero(0);                         \
  _tile_zero(1);                         \
  _tile_zero(2);                         \
  _tile_zero(3);                         \
  _tile_zero(4);                         \
  _tile_zero(5);                         \
  _tile_zero(6);                         \
  _tile_zero(7);                         \
  for (int64_t i = 0; i < rounds; ++i) { \
    product(0, 4, 6);                    \
    product(1, 4, 7);                    \
    product(2, 5, 6);                    \
    product(3, 5, 7);                    \
  }                                      \
  alignas(64) float sums[256];           \
  _tile_stored(0, sums, tile_bytes);     \
  *sink += sums[0];

int64_t dot_bf16(int64_t rounds, float* sink) {
  TESSERAL_TILE_PRODUCTS(_tile_dpbf16ps)
  return n_tile_sums * 16 * 16 * 32 * 2;
}
int64_t dot_int8(int64_t rounds, float* sink) {
  TESSERAL_TILE_PRODUCTS(_tile_dpbusd)
  return n_tile_sums * 16 * 16 * 64 * 2;
}
#undef TESSERAL_TILE_PRODUCTS
constexpr Products dot_bf16_here = dot_bf16;
constexpr Products dot_int8_here = dot_int8;
#else

// Not __AVX512BF16__ alone: the compiler may know it of a target that is built without AVX-512.
#if defined(__AVX512BF16__) && defined(__AVX512F__)
int64_t dot_bf16(int64_t rounds, float* sink) {
  const __m512bh tiny = _mm512_cvtne2ps_pbh(every(1e-3f), every(1e-3f));
  return run_chains(every(1.0f), rounds, 4, sink,
                    [&](Floats x) { return _mm512_dpbf16_ps(x, tiny, tiny); });
}
constexpr Products dot_bf16_here = dot_bf16;
#else
constexpr Products dot_bf16_here = nullptr;
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
int64_t dot_int8(int64_t rounds, float* sink) {
  const Ints ones = every_int(0x01010101);
  return run_chains(every_int(0), rounds, 8, sink,
                    [&](Ints x) { return _mm512_dpbusd_epi32(x, ones, ones); });
}
constexpr Products dot_int8_here = dot_int8;
#else
constexpr Products dot_int8_here = nullptr;
#endif
#endif  // __AMX_TILE__

// Reads from several places in turns: at the start of a page the chip has to find out where it
// is, and while it does so for one, it reads the others.
uint64_t read(const uint8_t* data, int64_t bytes) {
  constexpr int64_t width = sizeof(Ints);
  constexpr int n_sums = 4;
  constexpr int64_t n_places = 4;
  constexpr int64_t step = n_sums * width;
  Ints sums[n_sums];
  for (Ints& sum : sums) sum = every_int(0);
  const int64_t part = bytes / (n_places * step) * step;
  for (int64_t at = 0; at < part; at += step) {
#pragma GCC unroll 4
    for (int64_t place = 0; place < n_places; ++place) {
#pragma GCC unroll 4
      for (int i = 0; i < n_sums; ++i) {
        sums[i] = add(sums[i], load(data + place * part + at + i * width));
      }
    }
  }
  int64_t at = n_places * part;
  uint64_t total = 0;
  for (const Ints& sum : sums) {
    uint64_t parts[sizeof(Ints) / sizeof(uint64_t)];
    store(parts, sum);
    for (const uint64_t part : parts) total += part;
  }
  for (; at < bytes; ++at) total += data[at];
  return total;
}

}  // namespace

extern const CeilingKernels ceilings;
const CeilingKernels ceilings = {fma_fp32, dot_bf16_here, dot_int8_here, read};

}  // namespace tesseral::TESSERAL_TARGET

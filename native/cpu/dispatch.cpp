// The only file that asks the CPU anything.
#include "dispatch.h"

#include <cstring>

#if defined(TESSERAL_X86)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(TESSERAL_X86)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tesseral {

// Each target defines its tables under its own name.
#define TESSERAL_DECLARE(name)                    \
  namespace name {                                \
  extern const AttentionKernels attention;        \
  extern const CeilingKernels ceilings;           \
  extern const LinearInt4Kernels linear_int4;     \
  extern const QuantizeRowsKernels quantize_rows; \
  extern const NormRowsKernels norm_rows;         \
  extern const HeadRowsKernels head_rows;         \
  extern const DenseRowsKernels dense_rows;       \
  extern const PointwiseKernels pointwise;        \
  extern const WeightOnlyKernels weight_only;     \
  }
#if defined(TESSERAL_HAS_amx)
TESSERAL_DECLARE(amx)
#endif
#if defined(TESSERAL_HAS_avx512_bf16)
TESSERAL_DECLARE(avx512_bf16)
#endif
#if defined(TESSERAL_HAS_avx512)
TESSERAL_DECLARE(avx512)
#endif
#if defined(TESSERAL_HAS_avx2)
TESSERAL_DECLARE(avx2)
#endif
TESSERAL_DECLARE(scalar)
#undef TESSERAL_DECLARE

namespace {

// Bits of XCR0: register state that the operating system saves and restores.
constexpr std::uint64_t saves_ymm = 0x06;  // SSE and upper halves of YMM
constexpr std::uint64_t saves_zmm = 0xE6;  // those, mask registers, upper halves of ZMM, ZMM16-31
constexpr std::uint64_t saves_tile = 0x60000;  // AMX configuration and tiles

#if defined(TESSERAL_X86)
std::uint64_t read_xcr0() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  // the instruction by name: the intrinsic would need -mxsave for this whole file
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

// Linux gives a process its tiles, 8 KiB of state for every thread, only if it asks; it refuses
// where a signal's stack is too small for them. What was granted stays granted.
bool ask_for_tiles() {
#if defined(__linux__)
  constexpr int request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int tile_data = 18;               // the bit of XCR0
  static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

}  // namespace

CpuWords read_cpu() {
  CpuWords words;
#if defined(TESSERAL_X86)
  std::uint32_t eax = 0;
  std::uint32_t ebx = 0;
  std::uint32_t ecx = 0;
  std::uint32_t edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) words.leaf1_ecx = ecx;
  // without this bit the system has not enabled XGETBV, and executing it would fault
  constexpr std::uint32_t osxsave = 1u << 27;
  if (words.leaf1_ecx & osxsave) words.xcr0 = read_xcr0();
  if ((words.xcr0 & saves_tile) == saves_tile && !ask_for_tiles()) words.xcr0 &= ~saves_tile;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
    words.leaf7_ebx = ebx;
    words.leaf7_ecx = ecx;
    words.leaf7_edx = edx;
    if (eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) words.leaf7_1_eax = eax;
  }
#endif
  return words;
}

std::string cpu_brand() {
#if defined(TESSERAL_X86)
  std::uint32_t words[12] = {};
  for (std::uint32_t i = 0; i < 3; ++i) {
    std::uint32_t* w = words + 4 * i;
    if (!__get_cpuid(0x80000002u + i, &w[0], &w[1], &w[2], &w[3])) return {};
  }
  char text[sizeof words + 1] = {};
  std::memcpy(text, words, sizeof words);
  return text;
#else
  return {};
#endif
}

std::vector<Feature> features_of(const CpuWords& words) {
  const auto bit = [](std::uint32_t word, int position) { return ((word >> position) & 1u) != 0; };
  const bool ymm = (words.xcr0 & saves_ymm) == saves_ymm;
  const bool zmm = (words.xcr0 & saves_zmm) == saves_zmm;
  const bool tile = (words.xcr0 & saves_tile) == saves_tile;
  return {
      {"avx", bit(words.leaf1_ecx, 28), ymm},
      {"f16c", bit(words.leaf1_ecx, 29), ymm},
      {"fma", bit(words.leaf1_ecx, 12), ymm},
      {"avx2", bit(words.leaf7_ebx, 5), ymm},
      {"avx_vnni", bit(words.leaf7_1_eax, 4), ymm},
      {"avx512f", bit(words.leaf7_ebx, 16), zmm},
      {"avx512bw", bit(words.leaf7_ebx, 30), zmm},
      {"avx512dq", bit(words.leaf7_ebx, 17), zmm},
      {"avx512vl", bit(words.leaf7_ebx, 31), zmm},
      {"avx512_vnni", bit(words.leaf7_ecx, 11), zmm},
      {"avx512_bf16", bit(words.leaf7_1_eax, 5), zmm},
      {"avx512_fp16", bit(words.leaf7_edx, 23), zmm},
      {"amx_tile", bit(words.leaf7_edx, 24), tile},
      {"amx_int8", bit(words.leaf7_edx, 25), tile},
      {"amx_bf16", bit(words.leaf7_edx, 22), tile},
  };
}

// A row of the table: a target, and the features that it needs.
#define TESSERAL_ROW(name, ...)                             \
  {#name,           {__VA_ARGS__},     name::attention,     \
   name::ceilings,  name::linear_int4, name::quantize_rows, \
   name::norm_rows, name::head_rows,   name::dense_rows,    \
   name::pointwise, name::weight_only}

const std::vector<Target>& targets() {
  static const std::vector<Target> all = {
#if defined(TESSERAL_HAS_amx)
      TESSERAL_ROW(amx, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16",
                   "fma", "amx_tile", "amx_int8", "amx_bf16"),
#endif
#if defined(TESSERAL_HAS_avx512_bf16)
      TESSERAL_ROW(avx512_bf16, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
                   "avx512_bf16", "fma"),
#endif
#if defined(TESSERAL_HAS_avx512)
      TESSERAL_ROW(avx512, "avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"),
#endif
#if defined(TESSERAL_HAS_avx2)
      TESSERAL_ROW(avx2, "avx2", "fma", "f16c"),
#endif
      TESSERAL_ROW(scalar),
  };
  return all;
}
#undef TESSERAL_ROW

std::vector<std::string> missing(const Target& target, const std::vector<Feature>& features) {
  std::vector<std::string> names;
  for (const std::string& need : target.needs) {
    bool met = false;
    for (const Feature& feature : features) met = met || (feature.name == need && feature.usable());
    if (!met) names.push_back(need);
  }
  return names;
}

const Target* find_target(const std::string& name) {
  static const std::vector<Feature> here = features_of(read_cpu());
  for (const Target& target : targets()) {
    if (target.name == name && missing(target, here).empty()) return &target;
  }
  return nullptr;
}

}  // namespace tesseral

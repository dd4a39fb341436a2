// Pieces of tiles: where they lie in shared memory, how they get there, and their products.

#pragma once

// Where 16 bytes of a row lie. Eight rows of one chunk, which ldmatrix reads at once, lie in
// eight different places of 128 bytes: no two in one bank.
template <int BYTES>
__device__ constexpr unsigned place(int row, int chunk) {
  if (BYTES == 64) return row * 64 + (chunk ^ (row / 2 % 4)) * 16;
  return row * 128 + (chunk ^ (row % 8)) * 16;
}

__device__ inline unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ inline void store16(unsigned to, uint4 value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

#if ARCH >= 80
__device__ inline void copy_async(unsigned to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
#endif

__device__ inline void load_four(unsigned (&to)[4], unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}
__device__ inline void load_two(unsigned (&to)[2], unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(from)
               : "memory");
}
__device__ inline void load_one(unsigned& to, unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(to)
               : "r"(from)
               : "memory");
}

// sums (16, 8) += left (16, K) right (8, K)^T; K is 64 codes of 4 bits or 32 bytes.
// Registers of left: rows 0-7 and 8-15 of the first half of K, then of the second.
__device__ inline void multiply_add(int (&sums)[4], const unsigned (&left)[4],
                                    const unsigned (&right)[2]) {
#if ARCH >= 80
#if CODES == 4
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 "
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
#endif
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#else
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const int half = part % 2;
#if CODES == 4
    asm volatile(
        "mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32 "
#else
    asm volatile(
        "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 "
#endif
        "{%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(sums[2 * half]), "+r"(sums[2 * half + 1])
        : "r"(left[part]), "r"(right[part / 2]));
  }
#endif
}

// Each step is rounded in float32: (sum * x_scale) * scale + bias.
__device__ inline void store_result(void* output, long long at, int sum, float rate,
                                    const float* scale, const float* bias, int column) {
#if OUTPUT == 0
  static_cast<int*>(output)[at] = sum;
#else
  float value = __fmul_rn(__fmul_rn(static_cast<float>(sum), rate), scale[column]);
  if (bias != nullptr) value = __fadd_rn(value, bias[column]);
#if OUTPUT == 1
  static_cast<float*>(output)[at] = value;
#elif OUTPUT == 2
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  static_cast<unsigned short*>(output)[at] = bits;
#else
  // rounded to nearest, ties to even; a NaN stays one
  unsigned bits = __float_as_uint(value);
  bits = value != value ? bits | 0x400000u : bits + 0x7FFFu + (bits >> 16 & 1u);
  static_cast<unsigned short*>(output)[at] = static_cast<unsigned short>(bits >> 16);
#endif
#endif
}

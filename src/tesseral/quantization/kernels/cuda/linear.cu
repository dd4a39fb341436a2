// Rows of codes times packed 4-bit weights on the tensor cores of Turing, Ampere and Ada.
//
// ARCH 75 or 80: instructions of the former have 8 rows, of the latter 16.
// CODES 4: mma of s4, both sides as they are packed. CODES 8: mma of s8; a weight's codes become
// bytes in registers, 16 times as large: `word << 4` holds the even ones, `word` the odd ones,
// after a mask. So rows come with the even codes of every 32 before the odd ones.
// ROWS, COLUMNS: of a block's tile; WARPS_M by WARPS_N warps share it. STAGES: tiles on their way.
// OUTPUT 0: int32 sums; 1, 2, 3: scaled float32, float16, bfloat16.

#include "fragments.h"

#define THREADS (32 * WARPS_M * WARPS_N)
#define STEP 128                    // codes of a row in a tile
#define X_BYTES (STEP * CODES / 8)  // bytes of a row of x in a tile
#define W_BYTES (STEP / 2)
#define TILE_BYTES (ROWS * X_BYTES + COLUMNS * W_BYTES)
#define SQUARES_M (ROWS / WARPS_M / 16)
#define SQUARES_N (COLUMNS / WARPS_N / 8)

// Copy `rows` rows of a tile into shared memory; what lies past the end of a row is zero.
template <int COUNT, int BYTES>
__device__ void fetch(unsigned shared, const unsigned char* from, int first, int last,
                      long long step, int start, int length, uint4* held, bool hold) {
  constexpr int CHUNKS = BYTES / 16;
#pragma unroll
  for (int i = 0; i < (COUNT * CHUNKS + THREADS - 1) / THREADS; ++i) {
    const int at = i * THREADS + threadIdx.x;
    if (COUNT * CHUNKS % THREADS != 0 && at >= COUNT * CHUNKS) break;
    const int row = at / CHUNKS, chunk = at % CHUNKS;
    const int line = min(first + row, last);
    const int byte = start + 16 * chunk;
    const unsigned char* source = from + line * step + byte;
    const bool inside = byte < length;
#if ARCH >= 80
    copy_async(shared + place<BYTES>(row, chunk), inside ? source : from, inside ? 16 : 0);
#else
    if (hold) {
      held[i] = inside ? *reinterpret_cast<const uint4*>(source) : make_uint4(0, 0, 0, 0);
    } else {
      store16(shared + place<BYTES>(row, chunk), held[i]);
    }
#endif
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear(const unsigned char* __restrict__ x, const float* __restrict__ x_scale,
           const unsigned char* __restrict__ weight, const float* __restrict__ scale,
           const float* __restrict__ bias, void* __restrict__ output, int n_rows, int n_columns,
           int length) {
  extern __shared__ __align__(128) unsigned char memory[];
  const unsigned base = shared_address(memory);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp / WARPS_N, warp_n = warp % WARPS_N;
  const int row_0 = blockIdx.y * ROWS, column_0 = blockIdx.x * COLUMNS;
  const long long x_step = static_cast<long long>(length) * CODES / 8, w_step = length / 2;
  constexpr int X_HELD = (ROWS * X_BYTES / 16 + THREADS - 1) / THREADS;
  constexpr int W_HELD = (COLUMNS * W_BYTES / 16 + THREADS - 1) / THREADS;
  uint4 x_held[X_HELD], w_held[W_HELD];
  int sums[SQUARES_M][SQUARES_N][4] = {};
  const int tiles = (length + STEP - 1) / STEP;

  auto load = [&](int tile, bool hold) {
    const unsigned at = base + tile % STAGES * TILE_BYTES;
    fetch<ROWS, X_BYTES>(at, x, row_0, n_rows - 1, x_step, tile * X_BYTES, static_cast<int>(x_step),
                         x_held, hold);
    fetch<COLUMNS, W_BYTES>(at + ROWS * X_BYTES, weight, column_0, n_columns - 1, w_step,
                            tile * W_BYTES, static_cast<int>(w_step), w_held, hold);
  };

#if ARCH >= 80
#pragma unroll
  for (int tile = 0; tile < STAGES - 1; ++tile) {
    if (tile < tiles) load(tile, false);
    commit_copies();
  }
#else
  load(0, true);
  load(0, false);
  __syncthreads();
#endif
  for (int tile = 0; tile < tiles; ++tile) {
#if ARCH >= 80
    wait_copies<STAGES - 2>();
    __syncthreads();
    if (tile + STAGES - 1 < tiles) load(tile + STAGES - 1, false);
    commit_copies();
#else
    if (tile + 1 < tiles) load(tile + 1, true);
#endif
    const unsigned x_at = base + tile % STAGES * TILE_BYTES;
    const unsigned w_at = x_at + ROWS * X_BYTES;
    // a step of s4 is 64 codes of both, one of s8 is 32
#pragma unroll
    for (int step = 0; step < X_BYTES / 32; ++step) {
      unsigned left[SQUARES_M][4];
#pragma unroll
      for (int m = 0; m < SQUARES_M; ++m) {
        const int row = warp_m * (ROWS / WARPS_M) + 16 * m + lane % 16;
        load_four(left[m], x_at + place<X_BYTES>(row, 2 * step + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < SQUARES_N; ++n) {
        const int column = warp_n * (COLUMNS / WARPS_N) + 8 * n + lane % 8;
        unsigned right[2];
#if CODES == 4
        load_two(right, w_at + place<W_BYTES>(column, 2 * step + lane / 8 % 2));
#else
        unsigned word;
        load_one(word, w_at + place<W_BYTES>(column, step));
        right[0] = (word << 4) & 0xF0F0F0F0u;
        right[1] = word & 0xF0F0F0F0u;
#endif
#pragma unroll
        for (int m = 0; m < SQUARES_M; ++m) multiply_add(sums[m][n], left[m], right);
      }
    }
#if ARCH < 80
    if (tile + 1 < tiles) load(tile + 1, false);
    __syncthreads();
#endif
  }

#pragma unroll
  for (int m = 0; m < SQUARES_M; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_0 + warp_m * (ROWS / WARPS_M) + 16 * m + 8 * half + lane / 4;
      if (row >= n_rows) continue;
      const float rate = OUTPUT == 0 ? 1.0f : x_scale[row];
#pragma unroll
      for (int n = 0; n < SQUARES_N; ++n) {
        const int column = column_0 + warp_n * (COLUMNS / WARPS_N) + 8 * n + 2 * (lane % 4);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (column + i >= n_columns) continue;
          const int sum = sums[m][n][2 * half + i] >> (CODES == 8 ? 4 : 0);
          const long long at = static_cast<long long>(row) * n_columns + column + i;
          store_result(output, at, sum, rate, scale, bias, column + i);
        }
      }
    }
  }
}

// Write int8 codes as a side of the product: packed in pairs (CODES 4), or with the even ones of
// every 32 before the odd ones (CODES 8). A thread takes 8 codes.
extern "C" __global__ void arrange(const int2* __restrict__ codes, unsigned char* __restrict__ x,
                                   long long count) {
  const long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const int2 words = codes[at];
  const unsigned even = __byte_perm(words.x, words.y, 0x6420);
  const unsigned odd = __byte_perm(words.x, words.y, 0x7531);
#if CODES == 4
  reinterpret_cast<unsigned*>(x)[at] = (even & 0x0F0F0F0Fu) | ((odd & 0x0F0F0F0Fu) << 4);
#else
  unsigned* group = reinterpret_cast<unsigned*>(x + at / 4 * 32);
  group[at % 4] = even;
  group[4 + at % 4] = odd;
#endif
}

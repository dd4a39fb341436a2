// What kernels of all architectures are told of a call, and what they derive from it.
//
// A row is one query of one head. Rows of the heads that share keys are numbered together, heads
// of the group fastest, so that a tile of rows may hold several heads. Everything that is known
// when a kernel is compiled is a macro; program.py sets them.
#pragma once
#include "layout.h"

typedef unsigned int u32;
typedef long long i64;
typedef unsigned short half_t;  // the bits of a float16

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define NOTHING (-__int_as_float(0x7f800000))  // what an unseen key scores: minus infinity

struct Call {  // call.py
  const half_t *query, *key, *value;
  half_t* output;
  float* lse;
  const void* mask;
  const float *sinks, *slopes;
  const int* spans;           // (4, batch): start and length of queries, start and length of keys
  const int* tables;          // (batch, table_width): blocks of each sequence
  const unsigned char* seen;  // whether the mask leaves something of a tile of rows and keys
  float *part_output, *part_lse;
  i64 query_step[3], key_step[3], value_step[3], output_step[3], lse_step[3];
  i64 mask_step[4];
  i64 seen_step[3];              // batch, key head, tile of rows; tiles of keys are neighbours
  i64 part_step[3], parts_step;  // lines of a part; from one part to the next
  int batch, q_heads, kv_heads, group, q_len, kv_len;
  int left, right;  // keys seen before and after the diagonal
  int splits, table_width, block_size, slope_batch;
  float scale, softcap;
  float query_factor;  // a power of two, by which queries are multiplied with HALF_SCORES
};
static_assert(sizeof(Call) == CALL_BYTES, "call.py: Call differs");

// The same number, of which the compiler does not know that it stays the same: what is worked out
// from it in a loop does not wait in registers outside, where there are none to spare.
__device__ __forceinline__ int anew(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

// The rows, and the keys that some of them see, of one block of threads.
struct Work {
  int batch, kv_head;
  int q_start, k_start;  // where the sequence starts
  int rows, kv_len;      // of the sequence
  int diagonal;          // key beside query 0
  int first_row;
  int first_tile, last_tile;
#if MASK
  const unsigned char* seen;
#endif

  // The first tile from one on that the mask does not hide as a whole.
  __device__ __forceinline__ int visited(int tile) const {
#if MASK
    while (tile < last_tile && !seen[tile]) ++tile;
#endif
    return tile;
  }
};

__device__ __forceinline__ Work find_work(const Call& call, int tile_rows) {
  Work work;
  // late rows see more keys under causality: first come, first served
  const int tile = gridDim.x - 1 - blockIdx.x;
  work.batch = blockIdx.y / call.kv_heads;
  work.kv_head = blockIdx.y % call.kv_heads;
  work.q_start = work.k_start = 0;
  int q_len = call.q_len;
  work.kv_len = call.kv_len;
#if PACKED
  work.q_start = call.spans[work.batch];
  q_len = call.spans[call.batch + work.batch];
  work.k_start = call.spans[2 * call.batch + work.batch];
  work.kv_len = call.spans[3 * call.batch + work.batch];
#endif
  work.rows = q_len * call.group;
  work.diagonal = work.kv_len - q_len;
  work.first_row = tile * tile_rows;
  const int end = min(work.first_row + tile_rows, work.rows);
  const int first = work.first_row / call.group, last = (end - 1) / call.group;
  const int start = max(0, first + work.diagonal - call.left);
  const int stop = min(work.kv_len, last + work.diagonal + call.right + 1);
  work.first_tile = start / KEYS;
  work.last_tile =
      end > work.first_row && stop > start ? (stop + KEYS - 1) / KEYS : work.first_tile;
  if (call.splits > 1) {
    const int share = (work.last_tile - work.first_tile + call.splits - 1) / call.splits;
    work.first_tile = min(work.last_tile, work.first_tile + (int)blockIdx.z * share);
    work.last_tile = min(work.last_tile, work.first_tile + share);
  }
#if MASK
  work.seen = call.seen + work.batch * call.seen_step[0] + work.kv_head * call.seen_step[1] +
              tile * call.seen_step[2];
#endif
  work.first_tile = work.visited(work.first_tile);
  return work;
}

// Keys that rows [first, stop) of a warp see: some of them, and all of them.
struct Sight {
  int start, stop, full_start, full_stop;

  __device__ __forceinline__ Sight(const Call& call, const Work& work, int first, int stop_row) {
    const int end = min(stop_row, work.rows);
    const int above = first / call.group + work.diagonal;
    const int below = (end - 1) / call.group + work.diagonal;
    start = max(0, above - call.left);
    stop = first < end ? min(work.kv_len, below + call.right + 1) : 0;
    full_start = below - call.left;
    full_stop = min(work.kv_len, above + call.right + 1);
#if MASK || GENERAL
    full_stop = -1;
#endif
  }
  __device__ __forceinline__ bool sees(int k, int count) const {
    return k < stop && k + count > start;
  }
  __device__ __forceinline__ bool fully(int k, int count) const {
    return k >= full_start && k + count <= full_stop;
  }
};

// Where one row lies, and what its scores take.
struct Row {
  int head, position;
  int place;  // of the key on its diagonal
  bool exists;
#if MASK
  i64 mask;
#endif
#if ALIBI
  float slope;
#endif

  __device__ __forceinline__ Row(const Call& call, const Work& work, int row) {
    exists = row < work.rows;
    position = row / call.group;
    head = work.kv_head * call.group + row % call.group;
    place = position + work.diagonal;
#if MASK
    mask = exists ? work.batch * call.mask_step[0] + head * call.mask_step[1] +
                        position * call.mask_step[2]
                  : 0;
#endif
#if ALIBI
    slope = call.slopes[work.batch * call.slope_batch + head];
#endif
  }
};

__device__ __forceinline__ float to_float(half_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ u32 to_halves(float low, float high) {
  u32 both;
  asm("{ .reg .f16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b}; }"
      : "=r"(both)
      : "f"(low), "f"(high));
  return both;
}

__device__ __forceinline__ float exp2_of(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The score of a key from its product: in powers of two with GENERAL, else still to be scaled.
__device__ __forceinline__ float settle(const Call& call, const Row& row, int kv_len, int key,
                                        float score) {
  const int ahead = key - row.place;
  if (key >= kv_len || ahead > call.right || -ahead > call.left || !row.exists) return NOTHING;
#if GENERAL
  score *= call.scale;
#if SOFTCAP
  // tanh by the exponential, which keeps its precision near zero by the odd series
  const float x = score / call.softcap;
  const float grown = exp2_of(2 * LOG2E * fabsf(x));
  const float square = x * x;
  const float tanh_x = square < 0.01f ? x * (1 + square * (-1 / 3.f + square * (2 / 15.f)))
                                      : copysignf(1 - 2 / (grown + 1), x);
  score = call.softcap * tanh_x;
#endif
#if ALIBI
  score -= row.slope * abs(ahead);
#endif
#endif
#if MASK == 1
  if (!((const unsigned char*)call.mask)[row.mask + key * call.mask_step[3]]) return NOTHING;
#elif MASK == 2
  score += to_float(((const half_t*)call.mask)[row.mask + key * call.mask_step[3]]);
#elif MASK == 3
  score += ((const float*)call.mask)[row.mask + key * call.mask_step[3]];
#endif
#if GENERAL
  score *= LOG2E;
#endif
  return score;
}

// Pieces of 16 bytes on their way to shared memory: of a tile, this thread moves its chunk of every
// ROW_STEP-th row.
#define ROW_STEP (THREADS / CHUNKS)
static_assert(THREADS % CHUNKS == 0 && KEYS % ROW_STEP == 0, "a thread moves whole pieces");

struct Pieces {
  uint4 piece[KEYS / ROW_STEP];

  // Fetch the pieces of KEYS keys or values, of WIDTH numbers each.
  template <int WIDTH>
  __device__ __forceinline__ void fetch(const Call& call, const Work& work, const half_t* array,
                                        const i64 (&steps)[3], int first) {
    const int thread = anew(threadIdx.x), row = thread / CHUNKS, chunk = thread % CHUNKS;
    const int step = (int)steps[2];  // launch.py: below 2^31
    array += work.kv_head * steps[1] + 8 * chunk;
    if (!PAGED) array += (PACKED ? 0 : work.batch * steps[0]) + (i64)work.k_start * step;
#pragma unroll
    for (int i = 0; i < KEYS / ROW_STEP; ++i) {
      const int key = first + row + i * ROW_STEP;
      piece[i] = make_uint4(0, 0, 0, 0);
      const bool exists = key < work.kv_len && (WIDTH == 8 * CHUNKS || chunk < WIDTH / 8);
#if PAGED
      if (!exists) continue;
      const int block = call.tables[(i64)work.batch * call.table_width + key / call.block_size];
      const half_t* at = array + block * steps[0] + (i64)(key % call.block_size) * step;
#else
      const half_t* at = array + (i64)key * step;
#endif
      if (exists) piece[i] = __ldg((const uint4*)at);
    }
  }

  // Store them as the address map says.
  __device__ __forceinline__ void put(uint4* tile) const {
    const int thread = anew(threadIdx.x), row = thread / CHUNKS, chunk = thread % CHUNKS;
#pragma unroll
    for (int i = 0; i < KEYS / ROW_STEP; ++i) tile[PIECE(row + i * ROW_STEP, chunk)] = piece[i];
  }
};

// Fetch one piece of a row of queries.
__device__ __forceinline__ uint4 fetch_query(const Call& call, const Work& work, int row,
                                             int chunk) {
  if (row >= work.rows || chunk >= HEAD_DIM / 8) return make_uint4(0, 0, 0, 0);
  const int head = work.kv_head * call.group + row % call.group;
  const i64 at = (PACKED ? 0 : work.batch * call.query_step[0]) + head * call.query_step[1] +
                 (i64)(work.q_start + row / call.group) * call.query_step[2];
  uint4 piece = __ldg((const uint4*)(call.query + at) + chunk);
#if HALF_SCORES
  u32* const pair = &piece.x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const u32 both = pair[i];
    pair[i] = to_halves(to_float((half_t)both) * call.query_factor,
                        to_float((half_t)(both >> 16)) * call.query_factor);
  }
#endif
  return piece;
}

// Where the results of a row go.
struct Place {
  half_t* output;
  float *lse, *part_output, *part_lse;

  __device__ __forceinline__ Place(const Call& call, const Work& work, const Row& row, int part) {
    const int batch = PACKED ? 0 : work.batch;
    const i64 position = work.q_start + row.position;
    output = call.output + batch * call.output_step[0] + row.head * call.output_step[1] +
             position * call.output_step[2];
    lse = call.lse + batch * call.lse_step[0] + row.head * call.lse_step[1] +
          position * call.lse_step[2];
    const i64 line = batch * call.part_step[0] + row.head * call.part_step[1] +
                     position * call.part_step[2] + part * call.parts_step;
    part_output = call.part_output + line * VALUE_DIM;
    part_lse = call.part_lse + line;
  }
};

// What a row's sums are multiplied with at the end; writes its lse. `top` is in powers of two.
__device__ __forceinline__ float finish(const Call& call, const Row& row, const Place& place,
                                        float top, float sum, bool writes) {
  if (!PARTS && call.sinks != nullptr) {
    const float sink = call.sinks[row.head] * LOG2E;
    if (top == NOTHING) top = sink;
    if (sink != NOTHING) sum += exp2f(sink - top);
  }
  const float lse = sum > 0 ? (top + log2f(sum)) * LN2 : NOTHING;
  if (writes && row.exists) *(PARTS ? place.part_lse : place.lse) = lse;
  return sum > 0 ? 1 / sum : 0;
}

// Write two neighbouring numbers of a row.
__device__ __forceinline__ void write_pair(const Place& place, int column, float low, float high) {
  if (VALUE_DIM < 8 * CHUNKS && column >= VALUE_DIM) return;
#if PARTS
  *(float2*)(place.part_output + column) = make_float2(low, high);
#else
  *(u32*)(place.output + column) = to_halves(low, high);
#endif
}

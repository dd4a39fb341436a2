// Attention for Volta: mma.m8n8k4, whose operands lanes read from shared memory themselves.
//
// A warp owns SQUARES squares of 16 rows and keeps their scores and sums in registers. Reading
// from shared memory bounds this chip: each operand read serves SQUARES products or as many as
// there are squares of keys. Weights become the left operand of the second product by exchanges
// between lanes, two or six for a square, and never touch shared memory.
#include "call.h"

#define WARP_ROWS (16 * SQUARES)
#define TILE_ROWS (WARP_ROWS * WARPS)
#define TILE_PIECES (KEYS * CHUNKS)
#define GROUPS (KEYS / 16)
#define LANE_ROWS (HALF_SCORES ? 1 : 2)  // rows of a square whose scores a lane has

// How far, in powers of two, scores may grow past the top they are counted from. Weights stay
// within the range of float16, and sums are rarely scaled anew.
#define SLACK 8.0f

// sum += left (rows by 4) times right (4 by columns), with right held by columns.
__device__ __forceinline__ void multiply_keys(float (&sum)[8], u32 a0, u32 a1, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11}, {%0,%1,%2,%3,%4,%5,%6,%7};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]), "+f"(sum[4]), "+f"(sum[5]),
        "+f"(sum[6]), "+f"(sum[7])
      : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
}

// The same with sums in float16, two to a register.
__device__ __forceinline__ void multiply_keys(u32 (&sum)[4], u32 a0, u32 a1, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m8n8k4.row.col.f16.f16.f16.f16 {%0,%1,%2,%3}, {%4,%5}, {%6,%7}, "
      "{%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
}

// The same with right held by rows.
__device__ __forceinline__ void multiply_values(float (&sum)[8], u32 a0, u32 a1, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m8n8k4.row.row.f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11}, {%0,%1,%2,%3,%4,%5,%6,%7};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]), "+f"(sum[4]), "+f"(sum[5]),
        "+f"(sum[6]), "+f"(sum[7])
      : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float over_row(float x, bool largest) {
  const float other = __shfl_xor_sync(~0u, x, OTHER_KEYS);
  x = largest ? fmaxf(x, other) : x + other;
  if (HALF_SCORES) return x;
  const float third = __shfl_xor_sync(~0u, x, OTHER_ROWS);
  return largest ? fmaxf(x, third) : x + third;
}

// Of a number for each row of scores, the one for row i / 2 of this lane's sums.
__device__ __forceinline__ float for_sum(const float (&of_row)[LANE_ROWS], int i, int lane) {
  if (!HALF_SCORES) return of_row[i / 2 % LANE_ROWS];
  return __shfl_sync(~0u, of_row[0], (lane & ~OTHER_ROWS) | (i & 2));
}

// The state of a square of rows: sums, what they are counted from, and their denominators.
struct State {
  float sum[CHUNKS / 4][2][8];
  float top[LANE_ROWS], weight[LANE_ROWS];  // weights of this lane's keys only
};

// Scores of one square as they are worked on: row i / 2 % LANE_ROWS of this lane.
typedef float Scores[GROUPS][8];

__device__ __forceinline__ void multiply_tile(Scores (&score)[SQUARES], const uint4* queries,
                                              const uint4* keys, int lane) {
#if HALF_SCORES
  u32 sum[SQUARES][GROUPS][4];
#pragma unroll
  for (int m = 0; m < SQUARES; ++m)
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[m][g][i] = 0;
#else
  Scores(&sum)[SQUARES] = score;
#pragma unroll
  for (int m = 0; m < SQUARES; ++m)
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[m][g][i] = 0;
#endif
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    uint4 left[SQUARES];
#pragma unroll
    for (int m = 0; m < SQUARES; ++m) left[m] = queries[PIECE(16 * m + QUERY_ROW(lane), chunk)];
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
      const uint4 right = keys[PIECE(16 * g + KEY_ROW(lane), chunk)];
#pragma unroll
      for (int m = 0; m < SQUARES; ++m) {
        multiply_keys(sum[m][g], left[m].x, left[m].y, right.x, right.y);
        multiply_keys(sum[m][g], left[m].z, left[m].w, right.z, right.w);
      }
    }
  }
#if HALF_SCORES
#pragma unroll
  for (int m = 0; m < SQUARES; ++m)
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
      for (int i = 0; i < 8; ++i)
        score[m][g][i] = to_float((half_t)(sum[m][g][i / 2] >> (i % 2 * 16)));
#endif
}

// Turn scores into weights, and scale the state where their top has grown.
__device__ __forceinline__ void weigh(State& state, Scores& score, float factor, int lane) {
  float top[LANE_ROWS];
#pragma unroll
  for (int r = 0; r < LANE_ROWS; ++r) top[r] = NOTHING;
#pragma unroll
  for (int g = 0; g < GROUPS; ++g)
#pragma unroll
    for (int i = 0; i < 8; ++i) top[i / 2 % LANE_ROWS] = fmaxf(top[i / 2 % LANE_ROWS], score[g][i]);
  bool grows = false;
#pragma unroll
  for (int r = 0; r < LANE_ROWS; ++r) {
    top[r] = over_row(top[r], true) * factor;
    grows = grows || top[r] > state.top[r] + SLACK;
  }
  if (__any_sync(~0u, grows)) {
    float shrink[LANE_ROWS];
#pragma unroll
    for (int r = 0; r < LANE_ROWS; ++r) {
      const float grown = fmaxf(top[r], state.top[r]);
      shrink[r] = grown == NOTHING ? 1 : exp2_of(state.top[r] - grown);
      state.top[r] = grown;
      state.weight[r] *= shrink[r];
    }
    const float above = for_sum(shrink, 0, lane), below = for_sum(shrink, 2, lane);
#pragma unroll
    for (int j = 0; j < CHUNKS / 4; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < 8; ++i) state.sum[j][half][i] *= i & 2 ? below : above;
  }
#pragma unroll
  for (int r = 0; r < LANE_ROWS; ++r) {
    const float from = state.top[r] == NOTHING ? 0 : state.top[r];
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i / 2 % LANE_ROWS != r) continue;
        score[g][i] = exp2_of(score[g][i] * factor - from);
        state.weight[r] += score[g][i];
      }
  }
}

// Weights of a square as left operands: [eight keys][other][register], as VALUE_ROW counts keys.
__device__ __forceinline__ void move_weights(u32 (&left)[2][2][2], const float (&weight)[8],
                                             int lane) {
#pragma unroll
  for (int eight = 0; eight < 2; ++eight) {
    u32 first = to_halves(weight[4 * eight], weight[4 * eight + 1]);
    u32 second = to_halves(weight[4 * eight + 2], weight[4 * eight + 3]);
#if !HALF_SCORES
    // rows i & 2 of keys lane & 2 become rows lane & 2 of keys i & 2
    const bool lower = lane & OTHER_ROWS;
    const u32 got = __shfl_xor_sync(~0u, lower ? first : second, OTHER_ROWS);
    first = lower ? got : first;
    second = lower ? second : got;
#endif
    left[eight][0][0] = first;
    left[eight][0][1] = second;
    left[eight][1][0] = __shfl_xor_sync(~0u, first, OTHER_KEYS);
    left[eight][1][1] = __shfl_xor_sync(~0u, second, OTHER_KEYS);
  }
}

__device__ __forceinline__ void multiply_values(State (&state)[SQUARES],
                                                const Scores (&weight)[SQUARES],
                                                const uint4* values, int lane) {
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) {
    u32 left[SQUARES][2][2][2];
#pragma unroll
    for (int m = 0; m < SQUARES; ++m) move_weights(left[m], weight[m][g], lane);
#pragma unroll
    for (int eight = 0; eight < 2; ++eight)
#pragma unroll
      for (int other = 0; other < 2; ++other)
#pragma unroll
        for (int j = 0; j < CHUNKS / 4; ++j) {
          const uint4 right =
              values[PIECE(16 * g + VALUE_ROW(lane, eight, other), VALUE_CHUNK(lane, j))];
#pragma unroll
          for (int m = 0; m < SQUARES; ++m) {
            const u32(&a)[2] = left[m][eight][other];
            multiply_values(state[m].sum[j][0], a[0], a[1], right.x, right.y);
            multiply_values(state[m].sum[j][1], a[0], a[1], right.z, right.w);
          }
        }
  }
}

// Hide, bias and mask the scores of a square.
__device__ __forceinline__ void settle_all(const Call& call, const Work& work, Scores& score,
                                           int first_row, int first_key, int lane) {
#pragma unroll
  for (int r = 0; r < LANE_ROWS; ++r) {
    const Row row(call, work, first_row + (HALF_SCORES ? QUERY_ROW(lane) : SUM_ROW(lane, 2 * r)));
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i / 2 % LANE_ROWS != r) continue;
        const int key = HALF_SCORES ? HALF_SCORE_KEY(lane, i) : SCORE_KEY(lane, i);
        score[g][i] = settle(call, row, work.kv_len, first_key + 16 * g + key, score[g][i]);
      }
  }
}

// Write what a square of rows has come to.
__device__ __forceinline__ void write(const Call& call, const Work& work, const State& state,
                                      int first_row, int part, int lane) {
  float factor[LANE_ROWS];
#pragma unroll
  for (int r = 0; r < LANE_ROWS; ++r) {
    const Row row(call, work, first_row + (HALF_SCORES ? QUERY_ROW(lane) : SUM_ROW(lane, 2 * r)));
    const float sum = over_row(state.weight[r], false);
    const bool writes = !(lane & OTHER_KEYS) && (HALF_SCORES || !(lane & OTHER_ROWS));
    factor[r] = finish(call, row, Place(call, work, row, part), state.top[r], sum, writes);
  }
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const Row row(call, work, first_row + SUM_ROW(lane, i));
    const Place place(call, work, row, part);
    const float scale = for_sum(factor, i, lane);
    if (!row.exists) continue;
#pragma unroll
    for (int j = 0; j < CHUNKS / 4; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int k = i; k < 8; k += 4)
          write_pair(place, 32 * j + SUM_COLUMN(lane, half, k), state.sum[j][half][k] * scale,
                     state.sum[j][half][k + 1] * scale);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention(const Call call) {
  extern __shared__ uint4 memory[];
  const Work work = find_work(call, TILE_ROWS);
  if (work.first_row >= work.rows) return;
  const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int warp_row = WARP_ROWS * warp;
  uint4 *const keys = memory, *const values = keys + TILE_PIECES;
  uint4* const queries = values + TILE_PIECES;

  for (int index = threadIdx.x; index < TILE_ROWS * CHUNKS; index += THREADS)
    queries[PIECE(index / CHUNKS, index % CHUNKS)] =
        fetch_query(call, work, work.first_row + index / CHUNKS, index % CHUNKS);

  State state[SQUARES];
#pragma unroll
  for (int m = 0; m < SQUARES; ++m) {
#pragma unroll
    for (int j = 0; j < CHUNKS / 4; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < 8; ++i) state[m].sum[j][half][i] = 0;
#pragma unroll
    for (int r = 0; r < LANE_ROWS; ++r) state[m].top[r] = NOTHING, state[m].weight[r] = 0;
  }

  const int first_row = work.first_row + warp_row;
  const Sight sight(call, work, first_row, first_row + WARP_ROWS);
  const float factor = GENERAL ? 1 : call.scale * LOG2E;

  Pieces pieces;
  if (work.first_tile < work.last_tile) {
    pieces.fetch<HEAD_DIM>(call, work, call.key, call.key_step, work.first_tile * KEYS);
    pieces.put(keys);
    pieces.fetch<VALUE_DIM>(call, work, call.value, call.value_step, work.first_tile * KEYS);
    pieces.put(values);
  }
  __syncthreads();
  for (int tile = work.first_tile, following; tile < work.last_tile; tile = following) {
    const int k = tile * KEYS;
    following = work.visited(tile + 1);
    const bool more = following < work.last_tile, sees = sight.sees(k, KEYS);
    Scores score[SQUARES];
    if (more) pieces.fetch<HEAD_DIM>(call, work, call.key, call.key_step, following * KEYS);
    if (sees) multiply_tile(score, queries + warp_row * CHUNKS, keys, anew(lane));
    __syncthreads();
    if (more) {
      pieces.put(keys);
      pieces.fetch<VALUE_DIM>(call, work, call.value, call.value_step, following * KEYS);
    }
    if (sees) {
      const bool whole = sight.fully(k, KEYS);
#pragma unroll
      for (int m = 0; m < SQUARES; ++m) {
        if (!whole) settle_all(call, work, score[m], first_row + 16 * m, k, anew(lane));
        weigh(state[m], score[m], factor, lane);
      }
      multiply_values(state, score, values, anew(lane));
    }
    __syncthreads();
    if (more) pieces.put(values);
  }
#pragma unroll
  for (int m = 0; m < SQUARES; ++m)
    write(call, work, state[m], first_row + 16 * m, blockIdx.z, lane);
}

// Attention for Turing: mma.m16n8k8, ldmatrix, no asynchronous copies.
//
// A warp owns 16 rows. It keeps their queries, scores and sums in registers; keys and values pass
// through shared memory, the next ones waiting in registers meanwhile. Scores come out of the
// first product in the places where the second takes its left operand, so they never move.
#include "call.h"

#define TILE_ROWS (16 * WARPS)
#define TILE_PIECES (KEYS * CHUNKS)
#define QUERIES_STAY (CHUNKS <= 16)  // in registers; else they are read from shared memory anew

// How far, in powers of two, scores may grow past the top they are counted from. Weights stay
// within the range of float16, and sums are rarely scaled anew.
#define SLACK 8.0f

__device__ __forceinline__ void multiply(float (&sum)[4], u32 a0, u32 a1, u32 b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(b));
}

__device__ __forceinline__ void read(u32 (&to)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void read_transposed(u32 (&to)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ float over_row(float x, bool largest) {
#pragma unroll
  for (int lane = 1; lane < 4; lane *= 2) {
    const float other = __shfl_xor_sync(~0u, x, lane);
    x = largest ? fmaxf(x, other) : x + other;
  }
  return x;
}

// The state of 16 rows: sums, what they are counted from, and their denominators.
struct State {
  float sum[CHUNKS][4];
  float top[2], weight[2];  // of rows lane / 4 and lane / 4 + 8; weights of this lane's keys only
};

// Queries of two chunks of 16 rows, as left operands of two products: [2 chunk + register].
__device__ __forceinline__ void read_queries(u32 (&query)[4], u32 rows, int step, int lane) {
  read(query, rows + 16 * PIECE(QUERY_ROW(lane), QUERY_CHUNK(lane, step)));
}

typedef u32 Queries[QUERIES_STAY ? CHUNKS / 2 : 1][4];

__device__ __forceinline__ void multiply_keys(float (&score)[KEYS / 8][4], Queries& queries,
                                              u32 rows, u32 tile, int lane) {
#pragma unroll
  for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) score[n][i] = 0;
#pragma unroll
  for (int step = 0; step < CHUNKS / 2; ++step) {
    u32(&query)[4] = queries[QUERIES_STAY ? step : 0];
    if (!QUERIES_STAY) read_queries(query, rows, step, lane);
#pragma unroll
    for (int pair = 0; pair < KEYS / 16; ++pair) {
      u32 key[4];
      read(key, tile + 16 * PIECE(KEY_ROW(lane, pair), KEY_CHUNK(lane, step)));
      multiply(score[2 * pair], query[0], query[1], key[0]);
      multiply(score[2 * pair + 1], query[0], query[1], key[2]);
      multiply(score[2 * pair], query[2], query[3], key[1]);
      multiply(score[2 * pair + 1], query[2], query[3], key[3]);
    }
  }
}

// Turn scores into weights, and scale the state where their top has grown.
__device__ __forceinline__ void weigh(State& state, float (&score)[KEYS / 8][4], float factor) {
  float top[2] = {NOTHING, NOTHING};
#pragma unroll
  for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) top[i / 2] = fmaxf(top[i / 2], score[n][i]);
#pragma unroll
  for (int r = 0; r < 2; ++r) top[r] = over_row(top[r], true) * factor;
  if (__any_sync(~0u, top[0] > state.top[0] + SLACK || top[1] > state.top[1] + SLACK)) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float grown = fmaxf(top[r], state.top[r]);
      const float shrink = grown == NOTHING ? 1 : exp2_of(state.top[r] - grown);
      state.top[r] = grown;
      state.weight[r] *= shrink;
#pragma unroll
      for (int n = 0; n < CHUNKS; ++n) {
        state.sum[n][2 * r] *= shrink;
        state.sum[n][2 * r + 1] *= shrink;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float from = state.top[r] == NOTHING ? 0 : state.top[r];
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
      for (int i = 2 * r; i < 2 * r + 2; ++i) {
        score[n][i] = exp2_of(score[n][i] * factor - from);
        state.weight[r] += score[n][i];
      }
  }
}

__device__ __forceinline__ void multiply_values(State& state, const float (&score)[KEYS / 8][4],
                                                u32 tile, int lane) {
#pragma unroll
  for (int eight = 0; eight < KEYS / 8; ++eight) {
    const u32 above = to_halves(score[eight][0], score[eight][1]);
    const u32 below = to_halves(score[eight][2], score[eight][3]);
#pragma unroll
    for (int four = 0; four < CHUNKS / 4; ++four) {
      u32 value[4];
      read_transposed(value, tile + 16 * PIECE(VALUE_ROW(lane, eight), VALUE_CHUNK(lane, four)));
#pragma unroll
      for (int n = 0; n < 4; ++n) multiply(state.sum[4 * four + n], above, below, value[n]);
    }
  }
}

// Write what 16 rows have come to.
__device__ __forceinline__ void write(const Call& call, const Work& work, State& state,
                                      const Row (&rows)[2], int part, int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Place place(call, work, rows[r], part);
    const float sum = over_row(state.weight[r], false);
    const float factor = finish(call, rows[r], place, state.top[r], sum, lane % 4 == 0);
    if (!rows[r].exists) continue;
#pragma unroll
    for (int n = 0; n < CHUNKS; ++n)
      write_pair(place, 8 * n + SUM_COLUMN(lane, 0), state.sum[n][2 * r] * factor,
                 state.sum[n][2 * r + 1] * factor);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention(const Call call) {
  extern __shared__ uint4 memory[];
  const Work work = find_work(call, TILE_ROWS);
  if (work.first_row >= work.rows) return;
  const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int warp_row = 16 * warp;
  const u32 shared = (u32)__cvta_generic_to_shared(memory);

  // keys, then values, each BUFFERS times, then queries, or queries at first
  uint4 *const keys = memory, *const values = memory + BUFFERS * TILE_PIECES;
  constexpr int query_place = QUERIES_STAY ? 0 : 2 * BUFFERS * TILE_PIECES;
  const u32 query_rows = shared + 16 * (query_place + warp_row * CHUNKS);
  for (int index = threadIdx.x; index < TILE_ROWS * CHUNKS; index += THREADS)
    memory[query_place + PIECE(index / CHUNKS, index % CHUNKS)] =
        fetch_query(call, work, work.first_row + index / CHUNKS, index % CHUNKS);
  Queries queries;
  if (QUERIES_STAY) {
    __syncthreads();
#pragma unroll
    for (int step = 0; step < CHUNKS / 2; ++step)
      read_queries(queries[QUERIES_STAY ? step : 0], query_rows, step, lane);
    __syncthreads();
  }

  State state;
#pragma unroll
  for (int n = 0; n < CHUNKS; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) state.sum[n][i] = 0;
  state.top[0] = state.top[1] = NOTHING;
  state.weight[0] = state.weight[1] = 0;

  const int first_row = work.first_row + warp_row;
  const Row rows[2] = {Row(call, work, first_row + SUM_ROW(lane, 0)),
                       Row(call, work, first_row + SUM_ROW(lane, 2))};
  const Sight sight(call, work, first_row, first_row + 16);
  const float factor = GENERAL ? 1 : call.scale * LOG2E;

  Pieces pieces;
  if (work.first_tile < work.last_tile) {
    pieces.fetch<HEAD_DIM>(call, work, call.key, call.key_step, work.first_tile * KEYS);
    pieces.put(keys);
    pieces.fetch<VALUE_DIM>(call, work, call.value, call.value_step, work.first_tile * KEYS);
    pieces.put(values);
  }
  __syncthreads();
  int here = 0;  // the buffer that is read
  for (int tile = work.first_tile, following; tile < work.last_tile; tile = following) {
    const int k = tile * KEYS;
    following = work.visited(tile + 1);
    const bool more = following < work.last_tile, sees = sight.sees(k, KEYS);
    const int next = BUFFERS == 1 ? 0 : 1 - here;
    const u32 key_tile = shared + 16 * here * TILE_PIECES;
    const u32 value_tile = key_tile + 16 * BUFFERS * TILE_PIECES;
    float score[KEYS / 8][4];
    if (more) pieces.fetch<HEAD_DIM>(call, work, call.key, call.key_step, following * KEYS);
    if (sees) multiply_keys(score, queries, query_rows, key_tile, anew(lane));
    if (BUFFERS == 1) __syncthreads();
    if (more) {
      pieces.put(keys + next * TILE_PIECES);
      pieces.fetch<VALUE_DIM>(call, work, call.value, call.value_step, following * KEYS);
    }
    if (sees) {
      if (!sight.fully(k, KEYS)) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            score[n][i] = settle(call, rows[i / 2], work.kv_len, k + 8 * n + SUM_COLUMN(lane, i),
                                 score[n][i]);
      }
      weigh(state, score, factor);
      multiply_values(state, score, value_tile, anew(lane));
    }
    if (BUFFERS == 1) __syncthreads();
    if (more) pieces.put(values + next * TILE_PIECES);
    if (BUFFERS == 2) __syncthreads();
    here = next;
  }
  write(call, work, state, rows, blockIdx.z, lane);
}

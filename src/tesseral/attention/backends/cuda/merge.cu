// Merge the parts that the keys of a row were shared among: one warp a line.
#include "call.h"

#define LINES 4  // of a block of threads; launch.py: MERGE_LINES

extern "C" __global__ void __launch_bounds__(32 * LINES) merge(const Call call, int parts, i64 lines) {
  const i64 line = (i64)blockIdx.x * LINES + threadIdx.x / 32;
  if (line >= lines) return;
  const int lane = threadIdx.x % 32;
  const i64 position = line % call.part_step[1];
  const int head = line / call.part_step[1] % call.q_heads;
  const i64 batch = line / call.part_step[0];

  float top = call.sinks != nullptr ? call.sinks[head] : NOTHING;
  for (int part = 0; part < parts; ++part)
    top = fmaxf(top, call.part_lse[line + part * call.parts_step]);
  const float from = top == NOTHING ? 0 : top;
  float weight = call.sinks != nullptr ? expf(call.sinks[head] - from) : 0;
  constexpr int COLUMNS = (VALUE_DIM + 31) / 32;
  float sum[COLUMNS] = {};
  for (int part = 0; part < parts; ++part) {
    const i64 at = line + part * call.parts_step;
    const float share = expf(call.part_lse[at] - from);
    if (share == 0) continue;
    weight += share;
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i)
      if (32 * i + lane < VALUE_DIM)
        sum[i] += share * call.part_output[at * VALUE_DIM + 32 * i + lane];
  }
  const float factor = weight > 0 ? 1 / weight : 0;
  half_t *const output = call.output + batch * call.output_step[0] + head * call.output_step[1]
                         + position * call.output_step[2];
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i)
    if (32 * i + lane < VALUE_DIM) output[32 * i + lane] = (half_t)to_halves(sum[i] * factor, 0);
  if (lane == 0)
    call.lse[batch * call.lse_step[0] + head * call.lse_step[1] + position * call.lse_step[2]] =
        weight > 0 ? from + logf(weight) : NOTHING;
}

// Exact attention of one task; compiled once per instruction set.
#include "tesseral/attention.h"

#include "kernels/attention_packed.h"
#include "kernels/attention_streamed.h"
#include "kernels/attention_tiles.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

bool streams(const AttentionCall& call, const AttentionTask& task) {
  return rows_of(call, task) <= at_most(call.stream_rows, stream_max_rows);
}

int64_t packed_floats(const AttentionCall& call) {
  if (!multiplies_pairs(call)) return Workspace<false>::floats(call);
#if defined(TESSERAL_TILES)
  return TileSpace::floats(call);
#else
  return Workspace<true>::floats(call);
#endif
}

int64_t scratch_floats(const AttentionCall& call) {
  return at_least(packed_floats(call), StreamedTask::floats(call));
}

void run(const AttentionCall& call, const AttentionTask& task, float* scratch) {
  if (call.poison) {
    const float nan = __builtin_nanf("");
    for (int64_t i = 0; i < scratch_floats(call); ++i) scratch[i] = nan;
  }
  if (streams(call, task)) return StreamedTask(call, task, scratch).run();
#if defined(TESSERAL_TILES)
  if (multiplies_pairs(call)) return TiledTask(call, task, scratch).run();
#elif defined(TESSERAL_BF16_DOT)
  if (multiplies_pairs(call)) return PackedTask<true>(call, task, scratch).run();
#endif
  PackedTask<false>(call, task, scratch).run();
}

int64_t state_floats(const AttentionCall& call, int64_t rows) {
#if defined(TESSERAL_TILES)
  const bool tiled = multiplies_pairs(call) && rows > at_most(call.stream_rows, stream_max_rows);
  if (tiled) return TileSpace::state_floats(call, rows);
#endif
  return State::floats(call, rows);
}

void merge(const AttentionCall& call, const AttentionTask* tasks, int64_t n_tasks) {
  const int64_t rows = rows_of(call, tasks[0]);
  State first(call, tasks[0].state, rows);
  for (int64_t t = 1; t < n_tasks; ++t) {
    const State other(call, tasks[t].state, rows);
    for (int64_t r = 0; r < rows; ++r) {
      const float limit = first.limit[r] > other.limit[r] ? first.limit[r] : other.limit[r];
      const float mine = factor_between(first.limit[r], limit, unit_of(call));
      const float theirs = factor_between(other.limit[r], limit, unit_of(call));
      first.limit[r] = limit;
      first.sum[r] = first.sum[r] * mine + other.sum[r] * theirs;
      float* to = first.values + r * first.stride;
      const float* from = other.values + r * other.stride;
      for (int64_t i = 0; i < first.stride; i += lanes) {
        store(to + i, add(multiply(load(to + i), broadcast(mine)),
                          multiply(load(from + i), broadcast(theirs))));
      }
    }
  }
  write_output(call, tasks[0], first);
}

}  // namespace

extern const AttentionKernels attention;
const AttentionKernels attention = {lanes, scratch_floats, state_floats, run, merge};

}  // namespace tesseral::TESSERAL_TARGET

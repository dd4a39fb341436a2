#include "weight_only.h"

#include <atomic>

#include "linear_tiles.h"
#include "memory.h"
#include "pairs.h"
#include "threads.h"

namespace tesseral {
namespace {

using std::int64_t;

// Measured, not derived.
constexpr int64_t streamed_rows = 8;            // at most so many read weights as they are stored
constexpr int64_t prepared_floats = 64 * 1024;  // per task of preparation

bool is_valid(const WeightOnly& call) {
  const bool sizes = call.m >= 0 && call.k >= 1 && call.stride >= call.k &&
                     call.k <= linear_int4_max_k && linear_int4_takes_groups(call.k, call.group) &&
                     call.n_weights >= 1;
  if (!sizes || call.output == LinearOutput::sums || call.element == RowElement::f16) return false;
  for (int i = 0; i < call.n_weights; ++i) {
    if (call.weights[i].n < 0) return false;
  }
  return true;
}

Status run(const WeightOnlyKernels& kernels, WeightOnly call, const LinearPanels& sizes,
           const LinearTiles& tiles) {
  const Buffer<float> prepared = allocate<float>(kernels.rows_floats(call, tiles.stream()));
  call.prepared = prepared.get();
  std::atomic<Status> status{Status::ok};
  const auto note = [&](Status done) {
    if (done != Status::ok) status.store(done);
  };
  const int64_t rows = std::max<int64_t>(1, prepared_floats / call.k);
  parallel_for(ceil_div(call.m, rows), tiles.n_threads(), [&](int64_t task, int) {
    const int64_t begin = task * rows;
    note(kernels.prepare(call, tiles.stream(), begin, std::min(begin + rows, call.m)));
  });
  if (status.load() != Status::ok) return status.load();
  const int64_t panel_bytes = ceil_div(sizes.bytes, 64) * 64;
  const int64_t sums_size = ceil_div(tiles.rows() * sizes.sums, 16) * 16;
  Buffer<std::uint8_t> panels;
  Buffer<std::int32_t> sums;
  if (!tiles.stream()) {
    panels = allocate<std::uint8_t>(tiles.n_threads() * panel_bytes);
    sums = allocate<std::int32_t>(tiles.n_threads() * sums_size);
  }
  parallel_for(tiles.count(), tiles.n_threads(), [&](int64_t task, int worker) {
    LinearInt4Tile tile = tiles.at(task);
    if (!tiles.stream()) {
      tile.panel = panels.get() + worker * panel_bytes;
      tile.sums = sums.get() + worker * sums_size;
    }
    note(tiles.stream() ? kernels.stream(call, tile) : kernels.panels(call, tile));
  });
  return status.load();
}

}  // namespace

Status weight_only(const Target& target, const WeightOnly& given, int n_threads) {
  if (!is_valid(given) || n_threads < 1) return Status::invalid;
  int64_t columns = 0;
  for (int i = 0; i < given.n_weights; ++i) columns += given.weights[i].n;
  if (given.m == 0 || columns == 0) return Status::ok;
  WeightOnly call = given;
  const WeightOnlyKernels& kernels = target.weight_only;
  call.pairs = call.m > streamed_rows && kernels.takes_pairs(call) && pairs_pay(target);
  const LinearPanels sizes = kernels.panel_sizes(call);
  return run(kernels, call, sizes, LinearTiles(call, streamed_rows, sizes, n_threads));
}

}  // namespace tesseral

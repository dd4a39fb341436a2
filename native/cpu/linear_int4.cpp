#include "linear_int4.h"

#include <algorithm>
#include <atomic>

#include "memory.h"
#include "threads.h"

namespace tesseral {
namespace {

using std::int64_t;

// Sizes of tiles and tasks; measured, not derived.
constexpr int64_t panel_bytes = 128 * 1024;     // unpacked weights of a tile: stay in the L2 cache
constexpr int64_t max_tile_rows = 256;          // activation rows that share them
constexpr int64_t prepared_bytes = 256 * 1024;  // activations per task of preparation
constexpr double products_per_thread = 2e6;     // with fewer, waking it costs more than it saves

class Run {
 public:
  Run(const LinearInt4Kernels& kernels, const LinearInt4& call, int n_threads)
      : kernels_(kernels), call_(call) {
    const double worth = 1.0 * call.m * call.n * call.k / products_per_thread;
    n_threads = static_cast<int>(std::clamp<double>(worth, 1, n_threads));
    row_bytes_ = kernels.row_bytes(call.k);
    tiles_down_ = ceil_div(call.m, max_tile_rows);
    tile_rows_ = ceil_div(call.m, tiles_down_);
    // a multiple of the kernels' block of 4, and tiles for all threads
    const int64_t share = ceil_div(call.n, n_threads);
    tile_columns_ = std::max<int64_t>(1, std::min(panel_bytes / row_bytes_, share) / 4) * 4;
    tiles_across_ = ceil_div(call.n, tile_columns_);
    n_threads_ = static_cast<int>(std::min<int64_t>(n_threads, tiles_down_ * tiles_across_));
    rows_ = allocate<std::int8_t>(call.m * row_bytes_);
    summaries_ = allocate<RowSummary>(call.m);
    panels_ = allocate<std::uint8_t>(n_threads_ * tile_columns_ * row_bytes_);
    call_.rows = rows_.get();
    call_.summaries = summaries_.get();
  }

  Status operator()() {
    prepare();
    if (status() == Status::ok) compute();
    return status();
  }

 private:
  Status status() const { return status_.load(); }
  void note(Status status) {
    if (status != Status::ok) status_.store(status);
  }

  void prepare() {
    const int64_t rows = std::max<int64_t>(1, prepared_bytes / row_bytes_);
    parallel_for(ceil_div(call_.m, rows), n_threads_, [&](int64_t task, int) {
      const int64_t begin = task * rows;
      note(kernels_.prepare(call_, begin, std::min(begin + rows, call_.m)));
    });
  }

  void compute() {
    parallel_for(tiles_down_ * tiles_across_, n_threads_, [&](int64_t task, int worker) {
      LinearInt4Tile tile;
      tile.row_begin = task % tiles_down_ * tile_rows_;
      tile.row_end = std::min(tile.row_begin + tile_rows_, call_.m);
      tile.column_begin = task / tiles_down_ * tile_columns_;
      tile.column_end = std::min(tile.column_begin + tile_columns_, call_.n);
      tile.panel = panels_.get() + worker * tile_columns_ * row_bytes_;
      note(kernels_.compute(call_, tile));
    });
  }

  const LinearInt4Kernels& kernels_;
  LinearInt4 call_;
  int n_threads_;
  int64_t row_bytes_;
  int64_t tile_rows_;
  int64_t tile_columns_;
  int64_t tiles_down_;
  int64_t tiles_across_;
  Buffer<std::int8_t> rows_;
  Buffer<RowSummary> summaries_;
  Buffer<std::uint8_t> panels_;
  std::atomic<Status> status_{Status::ok};
};

}  // namespace

Status linear_int4(const Target& target, LinearInt4 call, int n_threads) {
  if (call.m < 0 || call.n < 0 || call.k < 1 || call.k > linear_int4_max_k || n_threads < 1) {
    return Status::invalid;
  }
  if (call.m == 0 || call.n == 0) return Status::ok;
  return Run(target.linear_int4, call, n_threads)();
}

}  // namespace tesseral

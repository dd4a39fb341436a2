#include "linear_int4.h"

#include <algorithm>
#include <atomic>

#include "memory.h"
#include "threads.h"

namespace tesseral {
namespace {

using std::int64_t;

// Sizes of tiles and tasks; measured, not derived.
constexpr int64_t streamed_rows = 12;  // at most so many read weights as they are stored
// Packed weights of a task that does: threads that read long stretches disturb
// each other less.
constexpr int64_t min_streamed_bytes = 64 * 1024;
constexpr int64_t max_streamed_bytes = 1024 * 1024;
constexpr int64_t max_tile_rows = 1024;         // rows that share an unpacked panel
constexpr int64_t prepared_bytes = 256 * 1024;  // activations per task of preparation
constexpr double products_per_thread = 2e6;     // with fewer, waking it costs more than it saves

class Run {
 public:
  Run(const LinearInt4Kernels& kernels, const LinearInt4& call, int n_threads)
      : kernels_(kernels), call_(call), stream_(call.m <= streamed_rows) {
    int64_t columns = 0;
    for (int i = 0; i < call.n_weights; ++i) columns += call.weights[i].n;
    const double worth = 1.0 * call.m * columns * call.k / products_per_thread;
    n_threads_ = static_cast<int>(std::clamp<double>(worth, 1, n_threads));
    choose_tiles(columns);
    row_bytes_ = kernels.row_bytes(call_, stream_);
    if (row_bytes_ > 0) rows_ = allocate<std::int8_t>(call.m * row_bytes_);
    offsets_ = allocate<std::int32_t>(call.m * (call.k / call.group));
    magnitudes_ = allocate<std::int32_t>(call.m);
    call_.rows = rows_.get();
    call_.offsets = offsets_.get();
    call_.magnitudes = magnitudes_.get();
    if (stream_) return;
    panel_bytes_ = ceil_div(kernels.panel_bytes(call_), 64) * 64;
    panels_ = allocate<std::uint8_t>(n_threads_ * panel_bytes_);
    sums_ = allocate<std::int32_t>(n_threads_ * tile_rows_ * linear_int4_panel);
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

  void choose_tiles(int64_t columns) {
    if (stream_) {
      tile_rows_ = call_.m;
      const int64_t bytes = (call_.k + 1) / 2;
      const int64_t share = ceil_div(columns * bytes, 4 * n_threads_);
      tile_columns_ =
          ceil_div(std::clamp(share, min_streamed_bytes, max_streamed_bytes), 4 * bytes) * 4;
    } else {
      tile_columns_ = linear_int4_panel;
      tile_rows_ = ceil_div(call_.m, ceil_div(call_.m, max_tile_rows));
      // a few columns must be cut in rows to keep all threads busy
      const int64_t wanted = ceil_div(4 * n_threads_, tiles_across());
      tile_rows_ =
          std::max<int64_t>(streamed_rows, std::min(tile_rows_, ceil_div(call_.m, wanted)));
    }
    tiles_down_ = ceil_div(call_.m, tile_rows_);
    n_tiles_ = tiles_down_ * tiles_across();
    n_threads_ = static_cast<int>(std::min<int64_t>(n_threads_, n_tiles_));
  }

  int64_t tiles_across() const {
    int64_t count = 0;
    for (int i = 0; i < call_.n_weights; ++i) count += ceil_div(call_.weights[i].n, tile_columns_);
    return count;
  }

  LinearInt4Tile tile_of(int64_t task, int worker) const {
    LinearInt4Tile tile;
    int64_t column = task / tiles_down_ * tile_columns_;
    for (;; ++tile.weight) {
      const int64_t width = ceil_div(call_.weights[tile.weight].n, tile_columns_) * tile_columns_;
      if (column < width) break;
      column -= width;
    }
    tile.row_begin = task % tiles_down_ * tile_rows_;
    tile.row_end = std::min(tile.row_begin + tile_rows_, call_.m);
    tile.column_begin = column;
    tile.column_end = std::min(column + tile_columns_, call_.weights[tile.weight].n);
    tile.panel = panels_.get() + worker * panel_bytes_;
    tile.sums = sums_.get() + worker * tile_rows_ * linear_int4_panel;
    return tile;
  }

  void prepare() {
    const int64_t rows = std::max<int64_t>(1, prepared_bytes / call_.k);
    parallel_for(ceil_div(call_.m, rows), n_threads_, [&](int64_t task, int) {
      const int64_t begin = task * rows;
      note(kernels_.prepare(call_, stream_, begin, std::min(begin + rows, call_.m)));
    });
  }

  void compute() {
    parallel_for(n_tiles_, n_threads_, [&](int64_t task, int worker) {
      const LinearInt4Tile tile = tile_of(task, worker);
      note(stream_ ? kernels_.stream(call_, tile) : kernels_.panels(call_, tile));
    });
  }

  const LinearInt4Kernels& kernels_;
  LinearInt4 call_;
  bool stream_;
  int n_threads_;
  int64_t row_bytes_ = 0;
  int64_t panel_bytes_ = 0;
  int64_t tile_rows_ = 0;
  int64_t tile_columns_ = 0;
  int64_t tiles_down_ = 0;
  int64_t n_tiles_ = 0;
  Buffer<std::int8_t> rows_;
  Buffer<std::int32_t> offsets_;
  Buffer<std::int32_t> magnitudes_;
  Buffer<std::uint8_t> panels_;
  Buffer<std::int32_t> sums_;
  std::atomic<Status> status_{Status::ok};
};

bool is_valid(const LinearInt4& call) {
  const bool sizes = call.m >= 0 && call.k >= 1 && call.stride >= call.k &&
                     call.k <= linear_int4_max_k && linear_int4_takes_groups(call.k, call.group) &&
                     call.n_weights >= 1;
  if (!sizes || (call.output == LinearOutput::sums && call.group != call.k)) return false;
  for (int i = 0; i < call.n_weights; ++i) {
    if (call.weights[i].n < 0) return false;
  }
  return true;
}

}  // namespace

Status linear_int4(const Target& target, const LinearInt4& call, int n_threads) {
  if (!is_valid(call) || n_threads < 1) return Status::invalid;
  int64_t columns = 0;
  for (int i = 0; i < call.n_weights; ++i) columns += call.weights[i].n;
  if (call.m == 0 || columns == 0) return Status::ok;
  return Run(target.linear_int4, call, n_threads)();
}

}  // namespace tesseral

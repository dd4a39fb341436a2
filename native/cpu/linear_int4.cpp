#include "linear_int4.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "linear_tiles.h"
#include "memory.h"
#include "threads.h"

namespace tesseral {
namespace {

using std::int64_t;

constexpr int64_t prepared_bytes = 256 * 1024;  // activations per task of preparation; measured

// Bytes of weights that a thread asks for ahead: most of its L2 cache.
int64_t fetched_bytes() {
  static const int64_t found = [] {
#ifdef _SC_LEVEL2_CACHE_SIZE
    const int64_t l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (l2 > 0) return l2 / 4 * 3;
#endif
    return int64_t{192} * 1024;
  }();
  return found;
}

class Run {
 public:
  Run(const LinearInt4Kernels& kernels, const LinearInt4& call, int n_threads)
      : kernels_(kernels),
        call_(call),
        panel_sizes_(kernels.panel_sizes(call)),
        tiles_(call, linear_int4_streamed_rows, panel_sizes_, n_threads) {
    const int64_t rows_bytes = kernels.rows_bytes(call, tiles_.stream());
    if (rows_bytes > 0) rows_ = allocate<std::int8_t>(rows_bytes);
    offsets_ = allocate<std::int32_t>(call.m * (call.k / call.group));
    magnitudes_ = allocate<std::int32_t>(call.m);
    call_.rows = rows_.get();
    call_.offsets = offsets_.get();
    call_.magnitudes = magnitudes_.get();
    if (tiles_.stream()) return;
    panel_bytes_ = ceil_div(panel_sizes_.bytes, 64) * 64;
    tile_sums_ = ceil_div(tiles_.rows() * panel_sizes_.sums, 16) * 16;
    panels_ = allocate<std::uint8_t>(tiles_.n_threads() * panel_bytes_);
    sums_ = allocate<std::int32_t>(tiles_.n_threads() * tile_sums_);
  }

  Status operator()() {
    prepare();
    if (status() == Status::ok) {
      if (!tiles_.stream()) prepare_outputs();
      compute();
    }
    return status();
  }

  // Few rows: all threads start once, and what they do depends on how far the others are.
  Status operator()(const FillRow& fill) {
    std::atomic<int64_t> missing{call_.m};
    parallel_for(call_.m + tiles_.count(), tiles_.n_threads(), [&](int64_t task, int) {
      if (task < call_.m) {
        note(fill(task));
        if (status() == Status::ok) note(kernels_.prepare(call_, true, task, task + 1));
        missing.fetch_sub(1);
        return;
      }
      const LinearInt4Tile tile = tiles_.at(task - call_.m);
      // tasks are taken in order, so that whoever has a missing row works on it
      if (missing.load() > 0) fetch(tile, missing);
      while (missing.load() > 0) std::this_thread::yield();
      if (status() == Status::ok) note(kernels_.stream(call_, tile));
    });
    return status();
  }

 private:
  Status status() const { return status_.load(); }
  void note(Status status) {
    if (status != Status::ok) status_.store(status);
  }

  void prepare() {
    const int64_t rows = std::max<int64_t>(1, prepared_bytes / call_.k);
    parallel_for(ceil_div(call_.m, rows), tiles_.n_threads(), [&](int64_t task, int) {
      const int64_t begin = task * rows;
      note(kernels_.prepare(call_, tiles_.stream(), begin, std::min(begin + rows, call_.m)));
    });
  }

  void prepare_outputs() const {
    const int64_t size = call_.output == LinearOutput::bf16 ? 2 : 4;
    for (int i = 0; i < call_.n_weights; ++i) {
      const LinearInt4Weight& weight = call_.weights[i];
      prefer_large_pages(weight.out, call_.m * weight.n * size);
    }
  }

  // Asks for the first weights of a tile until rows are there.
  void fetch(const LinearInt4Tile& tile, const std::atomic<int64_t>& missing) const {
    int64_t left = fetched_bytes();
    for (int64_t block = 0; left > 0 && missing.load(std::memory_order_relaxed) > 0; ++block) {
      const int64_t bytes = kernels_.fetch(call_, tile, block);
      if (bytes == 0) return;
      left -= bytes;
    }
  }

  void compute() {
    parallel_for(tiles_.count(), tiles_.n_threads(), [&](int64_t task, int worker) {
      LinearInt4Tile tile = tiles_.at(task);
      tile.panel = panels_.get() + worker * panel_bytes_;
      tile.sums = sums_.get() + worker * tile_sums_;
      note(tiles_.stream() ? kernels_.stream(call_, tile) : kernels_.panels(call_, tile));
    });
  }

  const LinearInt4Kernels& kernels_;
  LinearInt4 call_;
  LinearPanels panel_sizes_;
  LinearTiles tiles_;
  int64_t panel_bytes_ = 0;
  int64_t tile_sums_ = 0;
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

// Calls run(Run) for a call that has anything to compute.
template <class Work>
Status run(const Target& target, const LinearInt4& call, int n_threads, Work work) {
  if (!is_valid(call) || n_threads < 1) return Status::invalid;
  int64_t columns = 0;
  for (int i = 0; i < call.n_weights; ++i) columns += call.weights[i].n;
  if (call.m == 0 || columns == 0) return Status::ok;
  Run whole(target.linear_int4, call, n_threads);
  return work(whole);
}

}  // namespace

Status linear_int4(const Target& target, const LinearInt4& call, int n_threads) {
  return run(target, call, n_threads, [](Run& whole) { return whole(); });
}

Status linear_int4(const Target& target, const LinearInt4& call, int n_threads,
                   const FillRow& fill) {
  if (call.m > linear_int4_streamed_rows) return Status::invalid;
  return run(target, call, n_threads, [&](Run& whole) { return whole(fill); });
}

}  // namespace tesseral

// How the outputs of layers that read the same rows are cut into tiles.
#pragma once

#include <algorithm>

#include "memory.h"
#include "tesseral/linear_int4.h"

namespace tesseral {

// Tiles of all weights of a call, and how many threads they keep busy.
class LinearTiles {
 public:
  struct Sizes {
    std::int64_t m, k;
    std::int64_t streamed_rows;  // at most so many rows read weights as they are stored
    LinearPanels panels;         // of those that do not
  };

  // Call: LinearInt4 or WeightOnly.
  template <class Call>
  LinearTiles(const Call& call, std::int64_t streamed_rows, const LinearPanels& panels,
              int n_threads)
      : LinearTiles(call.weights, call.n_weights, {call.m, call.k, streamed_rows, panels},
                    n_threads) {}

  LinearTiles(const LinearInt4Weight* weights, int n_weights, const Sizes& sizes, int n_threads)
      : weights_(weights), n_weights_(n_weights), m_(sizes.m), stream_(m_ <= sizes.streamed_rows) {
    std::int64_t columns = 0;
    for (int i = 0; i < n_weights; ++i) columns += weights[i].n;
    const double worth = 1.0 * m_ * columns * sizes.k / products_per_thread;
    n_threads_ = static_cast<int>(std::clamp<double>(worth, 1, n_threads));
    if (stream_) {
      rows_ = m_;
      const std::int64_t bytes = (sizes.k + 1) / 2;
      const std::int64_t share = ceil_div(columns * bytes, 4 * n_threads_);
      columns_ = ceil_div(std::clamp(share, min_streamed_bytes, max_streamed_bytes), 4 * bytes) * 4;
    } else {
      columns_ = sizes.panels.columns;
      // narrower panels rather than fewer rows, for which weights would be unpacked again
      while (columns_ > linear_int4_panel && across() < 4 * n_threads_) columns_ /= 2;
      rows_ = ceil_div(m_, ceil_div(m_, sizes.panels.rows));
      // a few columns must be cut in rows to keep all threads busy
      const std::int64_t wanted = ceil_div(4 * n_threads_, across());
      rows_ = std::max<std::int64_t>(sizes.streamed_rows, std::min(rows_, ceil_div(m_, wanted)));
      rows_ = ceil_div(rows_, sizes.panels.row_step) * sizes.panels.row_step;
    }
    down_ = ceil_div(m_, rows_);
    count_ = down_ * across();
    n_threads_ = static_cast<int>(std::min<std::int64_t>(n_threads_, count_));
  }

  bool stream() const { return stream_; }
  int n_threads() const { return n_threads_; }
  std::int64_t count() const { return count_; }
  std::int64_t rows() const { return rows_; }  // of a tile

  LinearInt4Tile at(std::int64_t task) const {
    LinearInt4Tile tile;
    std::int64_t column = task / down_ * columns_;
    for (;; ++tile.weight) {
      const std::int64_t width = ceil_div(weights_[tile.weight].n, columns_) * columns_;
      if (column < width) break;
      column -= width;
    }
    tile.row_begin = task % down_ * rows_;
    tile.row_end = std::min(tile.row_begin + rows_, m_);
    tile.column_begin = column;
    tile.column_end = std::min(column + columns_, weights_[tile.weight].n);
    return tile;
  }

 private:
  // Packed weights of a task that reads them as they are stored: threads that read long stretches
  // disturb each other less.
  static constexpr std::int64_t min_streamed_bytes = 64 * 1024;
  static constexpr std::int64_t max_streamed_bytes = 1024 * 1024;
  static constexpr double products_per_thread = 2e6;  // with fewer, waking it costs more

  std::int64_t across() const {
    std::int64_t count = 0;
    for (int i = 0; i < n_weights_; ++i) count += ceil_div(weights_[i].n, columns_);
    return count;
  }

  const LinearInt4Weight* weights_;
  int n_weights_;
  std::int64_t m_;
  bool stream_;
  int n_threads_ = 1;
  std::int64_t rows_ = 0;
  std::int64_t columns_ = 0;
  std::int64_t down_ = 0;
  std::int64_t count_ = 0;
};

}  // namespace tesseral

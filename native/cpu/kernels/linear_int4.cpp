// Linear layers over packed 4-bit weights and int8 activations; compiled once
// per instruction set.
#include "kernels/linear_int4_stream.h"
#if defined(TESSERAL_TILES)
#include "kernels/linear_int4_tiles.h"
#else
#include "kernels/linear_int4_panel.h"
#endif

namespace tesseral::TESSERAL_TARGET {
namespace {

bool is_valid(const LinearInt4& call) {
  return call.m >= 0 && call.k >= 1 && call.stride >= call.k && call.k <= linear_int4_max_k &&
         linear_int4_takes_groups(call.k, call.group) && call.n_weights >= 1 &&
         (call.output != LinearOutput::sums || call.group == call.k);
}

bool is_valid(const LinearInt4& call, const LinearInt4Tile& tile) {
  return is_valid(call) && tile.weight >= 0 && tile.weight < call.n_weights &&
         tile.row_begin >= 0 && tile.row_end <= call.m && tile.column_begin >= 0 &&
         tile.column_end <= call.weights[tile.weight].n;
}

int64_t rows_bytes(const LinearInt4& call, bool stream) {
  return stream ? call.m * stream_row_bytes(call.k) : panel_rows_bytes(call);
}

Status prepare(const LinearInt4& call, bool stream, int64_t begin, int64_t end) {
  if (!is_valid(call) || begin < 0 || end > call.m) return Status::invalid;
  for (int64_t row = begin; row < end; ++row) {
    if (stream) {
      prepare_streamed(call, row);
    } else {
      prepare_panel_row(call, row);
    }
  }
  return Status::ok;
}

Status stream(const LinearInt4& call, const LinearInt4Tile& tile) {
  if (!is_valid(call, tile)) return Status::invalid;
  stream_tile(call, tile);
  return Status::ok;
}

int64_t fetch(const LinearInt4& call, const LinearInt4Tile& tile, int64_t block) {
  if (!is_valid(call, tile) || block < 0) return 0;
  return fetch_weights(call, tile, block);
}

Status panels(const LinearInt4& call, const LinearInt4Tile& tile) {
  if (!is_valid(call, tile) || tile.column_end - tile.column_begin > panel_sizes(call).columns) {
    return Status::invalid;
  }
  panel_tile(call, tile);
  return Status::ok;
}

}  // namespace

extern const LinearInt4Kernels linear_int4;
const LinearInt4Kernels linear_int4 = {rows_bytes, panel_sizes, prepare, stream, fetch, panels};

}  // namespace tesseral::TESSERAL_TARGET

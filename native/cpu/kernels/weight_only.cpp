// Linear layers over packed 4-bit weights and floating rows; compiled once per instruction set.
#include "kernels/weight_only_panel.h"
#include "kernels/weight_only_stream.h"
#if defined(TESSERAL_TILES)
#include "kernels/weight_only_tiles.h"
#endif

namespace tesseral::TESSERAL_TARGET {
namespace {

// Whether rows meet tiles of weights: pairs do, where there are tiles.
bool takes_tiles(const WeightOnly& call) {
#if defined(TESSERAL_TILES)
  return call.pairs;
#else
  (void)call;
  return false;
#endif
}

#if !defined(TESSERAL_TILES)
LinearPanels tile_panels(const WeightOnly&) { return {}; }
int64_t tile_rows_floats(const WeightOnly&) { return 0; }
void prepare_tile_row(const WeightOnly&, int64_t) {}
void multiply_tiles(const WeightOnly&, const LinearInt4Tile&) {}
#endif

int64_t rows_floats(const WeightOnly& call, bool stream) {
  if (stream) return call.m * stream_row_floats(call);
  return takes_tiles(call) ? tile_rows_floats(call) : call.m * panel_row_floats(call);
}

LinearPanels panel_sizes(const WeightOnly& call) {
  return takes_tiles(call) ? tile_panels(call) : panel_sizes_of(call);
}

Status stream(const WeightOnly& call, const LinearInt4Tile& tile) {
  if (!is_valid(call, tile)) return Status::invalid;
  stream_tile(call, tile);
  return Status::ok;
}

Status panels(const WeightOnly& call, const LinearInt4Tile& tile) {
  if (!is_valid(call, tile) || tile.column_end - tile.column_begin > panel_sizes(call).columns) {
    return Status::invalid;
  }
  takes_tiles(call) ? multiply_tiles(call, tile) : multiply_panel(call, tile);
  return Status::ok;
}

Status prepare(const WeightOnly& call, bool stream, int64_t begin, int64_t end) {
  if (!is_valid(call) || begin < 0 || end > call.m) return Status::invalid;
  for (int64_t row = begin; row < end; ++row) {
    stream              ? prepare_streamed(call, row)
    : takes_tiles(call) ? prepare_tile_row(call, row)
                        : prepare_panel_row(call, row);
  }
  return Status::ok;
}

}  // namespace

extern const WeightOnlyKernels weight_only;
const WeightOnlyKernels weight_only = {takes_pairs, rows_floats, panel_sizes,
                                       prepare,     stream,      panels};

}  // namespace tesseral::TESSERAL_TARGET

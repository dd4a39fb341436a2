// A decoder block of few tokens, but for its attention: what comes before and what comes after.
#pragma once

#include <vector>

#include "dispatch.h"

namespace tesseral {

// Layers that read the same rows, without the addresses of a call.
struct LayersOfInput {
  QuantizeRows rows;
  std::vector<LinearInt4Weight> weights;
  std::int64_t group = 0;
};

// Where the codes of new keys or values go.
struct HeadPlaces {
  std::uint8_t* codes = nullptr;
  HeadSteps code_steps;
  std::uint16_t* scale = nullptr;
  std::uint16_t* offset = nullptr;
  HeadSteps scale_steps;
};

// How one side of a cache is encoded.
struct HeadEncoding {
  const float* factor = nullptr;
  const float* clip = nullptr;
  int bits = 0;
};

struct NormOfRows {
  const void* weight = nullptr;
  float epsilon = 0;
};

// One token of each of `m` sequences. All numbers are of one type, float32 or bfloat16.
struct DecoderBlock {
  RowElement element = RowElement::f32;
  std::int64_t head_dim = 0;
  NormOfRows attention_norm;
  NormOfRows mlp_norm;
  LayersOfInput attention_input;   // query, key and value
  LayersOfInput attention_output;  // one layer
  LayersOfInput mlp_input;         // gate and up
  LayersOfInput mlp_hidden;        // one layer
  const float* query_factor = nullptr;
  HeadEncoding key;
  HeadEncoding value;
};

// Norm, query, key and value, rotation, and the encoding of keys and values.
struct BeforeAttention {
  std::int64_t m = 0;
  const void* hidden = nullptr;  // [m, width], dense
  const void* cosine = nullptr;  // [m or 1, head_dim]
  const void* sine = nullptr;
  std::int64_t rotary_step = 0;  // elements from one sequence's to the next's; 0 for one of all
  void* query = nullptr;         // [m, heads, head_dim], dense
  HeadPlaces key;
  HeadPlaces value;
};

// Output layer and residual, then norm, gated MLP and residual.
struct AfterAttention {
  std::int64_t m = 0;
  const void* attended = nullptr;  // [m, heads * head_dim], dense
  const void* hidden = nullptr;    // [m, width]: what came before attention
  void* out = nullptr;             // the same
};

// Where a layer keeps the codes of its tokens, the first of them.
struct LayerCache {
  HeadPlaces key;
  HeadPlaces value;
};

// One token of each of `m` sequences through all blocks, each of which adds to its cache.
struct TokenThroughBlocks {
  std::int64_t m = 0;
  const void* hidden = nullptr;  // [m, width], dense
  void* out = nullptr;           // the same, and not the same memory
  const void* cosine = nullptr;  // as in BeforeAttention
  const void* sine = nullptr;
  std::int64_t rotary_step = 0;
  std::int64_t position = 0;  // tokens that the caches hold
  // Attention to the tokens held and the new one, but for addresses, which are filled in.
  AttentionCall attention;
};

// Throw std::bad_alloc if there is no memory for scratch.
Status before_attention(const Target& target, const DecoderBlock& block,
                        const BeforeAttention& call, int n_threads);
Status after_attention(const Target& target, const DecoderBlock& block, const AfterAttention& call,
                       int n_threads);
// Throws what `attention` throws, too.
Status through_blocks(const Target& target, const std::vector<const DecoderBlock*>& blocks,
                      const std::vector<LayerCache>& caches, const TokenThroughBlocks& call,
                      int n_threads);

}  // namespace tesseral

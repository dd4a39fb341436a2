#include "decoder_block.h"

#include "attention.h"
#include "memory.h"
#include "model_rows.h"
#include "quantized_linear.h"

namespace tesseral {
namespace {

using std::int64_t;

int64_t size_of(RowElement element) { return element == RowElement::f32 ? 4 : 2; }
int64_t width_of(const LayersOfInput& layers) { return layers.rows.left * layers.rows.right; }

// Outputs of layers side by side in scratch memory, each [m, n].
class Outputs {
 public:
  Outputs(const LayersOfInput& layers, RowElement element, int64_t m) {
    int64_t total = 0;
    for (const LinearInt4Weight& weight : layers.weights) {
      begins_.push_back(total);
      total += ceil_div(m * weight.n * size_of(element), 64) * 64;
    }
    memory_ = allocate<char>(total);
  }
  void* at(std::size_t layer) const { return memory_.get() + begins_[layer]; }

 private:
  std::vector<int64_t> begins_;
  Buffer<char> memory_;
};

// Runs the steps of a block until one fails.
class Steps {
 public:
  Steps(const Target& target, const DecoderBlock& block, int64_t m, int n_threads)
      : target_(target), block_(block), m_(m), n_threads_(n_threads) {}

  Status status() const { return status_; }

  void norm(const void* rows, const NormOfRows& norm, int64_t width, void* out) {
    NormRows call;
    call.element = block_.element;
    call.rows = rows;
    call.stride = call.n = width;
    call.m = m_;
    call.weight = norm.weight;
    call.epsilon = norm.epsilon;
    call.out = out;
    note([&] { return norm_rows(target_, call, n_threads_); });
  }

  void linears(const LayersOfInput& layers, const void* rows, const Outputs& outs) {
    std::vector<LinearInt4Weight> weights = layers.weights;
    for (std::size_t i = 0; i < weights.size(); ++i) weights[i].out = outs.at(i);
    QuantizeRows input = layers.rows;
    input.element = block_.element;
    input.rows = rows;
    input.stride = width_of(layers);
    input.m = m_;
    LinearInt4 products;
    products.weights = weights.data();
    products.n_weights = static_cast<int>(weights.size());
    products.group = layers.group;
    products.output = block_.element == RowElement::bf16 ? LinearOutput::bf16 : LinearOutput::f32;
    note([&] { return quantized_linear(target_, input, products, n_threads_); });
  }

  // Heads that lie side by side in the rows of a layer's output.
  HeadRows heads(const void* rows, int64_t width) const {
    HeadRows call;
    call.element = block_.element;
    call.batch = m_;
    call.heads = width / block_.head_dim;
    call.tokens = 1;
    call.dim = block_.head_dim;
    call.rows = rows;
    call.row_steps = {width, block_.head_dim, 0};
    return call;
  }

  static void rotate(HeadRows& heads, const BeforeAttention& call) {
    heads.cosine = call.cosine;
    heads.sine = call.sine;
    heads.rotary_steps = {call.rotary_step, 0, 0};
  }

  void encode(HeadRows heads, const HeadEncoding& encoding, const HeadPlaces& places) {
    heads.factor = encoding.factor;
    heads.clip = encoding.clip;
    heads.bits = encoding.bits;
    heads.codes = places.codes;
    heads.code_steps = places.code_steps;
    heads.scale = places.scale;
    heads.offset = places.offset;
    heads.scale_steps = places.scale_steps;
    run(heads);
  }

  void run(const HeadRows& heads) {
    note([&] { return head_rows(target_, heads, n_threads_); });
  }

  void pointwise(Status (*step)(const Pointwise&), const void* first, const void* second,
                 int64_t width, void* out) {
    note([&] { return step({block_.element, first, second, out, m_ * width}); });
  }

 private:
  template <class Step>
  void note(Step step) {
    if (status_ == Status::ok) status_ = step();
  }

  const Target& target_;
  const DecoderBlock& block_;
  int64_t m_;
  int n_threads_;
  Status status_ = Status::ok;
};

bool is_valid(const DecoderBlock& block) {
  return block.attention_input.weights.size() == 3 && block.attention_output.weights.size() == 1 &&
         block.mlp_input.weights.size() == 2 && block.mlp_hidden.weights.size() == 1 &&
         block.head_dim > 0 && block.element != RowElement::f16;
}

}  // namespace

Status before_attention(const Target& target, const DecoderBlock& block,
                        const BeforeAttention& call, int n_threads) {
  if (!is_valid(block) || call.m < 1) return Status::invalid;
  Steps steps(target, block, call.m, n_threads);
  const int64_t width = width_of(block.attention_input);
  const Buffer<char> normed = allocate<char>(call.m * width * size_of(block.element));
  const Outputs outs(block.attention_input, block.element, call.m);
  steps.norm(call.hidden, block.attention_norm, width, normed.get());
  steps.linears(block.attention_input, normed.get(), outs);
  const auto& weights = block.attention_input.weights;
  HeadRows query = steps.heads(outs.at(0), weights[0].n);
  Steps::rotate(query, call);
  query.factor = block.query_factor;
  query.out = call.query;
  query.out_steps = query.row_steps;
  steps.run(query);
  HeadRows key = steps.heads(outs.at(1), weights[1].n);
  Steps::rotate(key, call);
  steps.encode(key, block.key, call.key);
  steps.encode(steps.heads(outs.at(2), weights[2].n), block.value, call.value);
  return steps.status();
}

Status after_attention(const Target& target, const DecoderBlock& block, const AfterAttention& call,
                       int n_threads) {
  if (!is_valid(block) || call.m < 1) return Status::invalid;
  Steps steps(target, block, call.m, n_threads);
  const int64_t width = width_of(block.mlp_input);
  const int64_t inner = width_of(block.mlp_hidden);
  const int64_t size = size_of(block.element);
  const Outputs projected(block.attention_output, block.element, call.m);
  const Buffer<char> hidden = allocate<char>(call.m * width * size);
  const Buffer<char> normed = allocate<char>(call.m * width * size);
  const Outputs gates(block.mlp_input, block.element, call.m);
  const Buffer<char> gated = allocate<char>(call.m * inner * size);
  const Outputs last(block.mlp_hidden, block.element, call.m);
  const PointwiseKernels& pointwise = target.pointwise;
  steps.linears(block.attention_output, call.attended, projected);
  steps.pointwise(pointwise.add, call.hidden, projected.at(0), width, hidden.get());
  steps.norm(hidden.get(), block.mlp_norm, width, normed.get());
  steps.linears(block.mlp_input, normed.get(), gates);
  steps.pointwise(pointwise.gate, gates.at(0), gates.at(1), inner, gated.get());
  steps.linears(block.mlp_hidden, gated.get(), last);
  steps.pointwise(pointwise.add, hidden.get(), last.at(0), width, call.out);
  return steps.status();
}

namespace {

HeadPlaces behind(HeadPlaces places, int64_t position) {
  places.codes += position * places.code_steps.token;
  places.scale += position * places.scale_steps.token;
  places.offset += position * places.scale_steps.token;
  return places;
}

void place(KeyValueRows& rows, const HeadPlaces& places) {
  rows.rows.data = places.codes;
  rows.scale.data = places.scale;
  rows.offset.data = places.offset;
}

}  // namespace

Status through_blocks(const Target& target, const std::vector<const DecoderBlock*>& blocks,
                      const std::vector<LayerCache>& caches, const TokenThroughBlocks& call,
                      int n_threads) {
  if (blocks.empty() || caches.size() != blocks.size()) return Status::invalid;
  for (const DecoderBlock* block : blocks) {
    if (!is_valid(*block)) return Status::invalid;
  }
  const DecoderBlock& first = *blocks[0];
  const int64_t row = first.attention_input.weights[0].n;  // of queries
  const Buffer<char> query = allocate<char>(call.m * row * size_of(first.element));
  const Buffer<char> attended = allocate<char>(call.m * row * size_of(first.element));
  const Buffer<float> lse = allocate<float>(call.m * row / first.head_dim);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const DecoderBlock& block = *blocks[i];
    if (block.element != first.element || block.attention_input.weights[0].n != row) {
      return Status::invalid;
    }
    const void* hidden = i == 0 ? call.hidden : call.out;
    BeforeAttention before;
    before.m = call.m;
    before.hidden = hidden;
    before.cosine = call.cosine;
    before.sine = call.sine;
    before.rotary_step = call.rotary_step;
    before.query = query.get();
    before.key = behind(caches[i].key, call.position);
    before.value = behind(caches[i].value, call.position);
    Status status = before_attention(target, block, before, n_threads);
    if (status != Status::ok) return status;
    AttentionCall attend = call.attention;
    attend.query.data = query.get();
    attend.output.data = attended.get();
    attend.lse.data = lse.get();
    place(attend.key, caches[i].key);
    place(attend.value, caches[i].value);
    attention(target, attend, n_threads);
    // the hidden states are read before any are written
    status = after_attention(target, block, {call.m, attended.get(), hidden, call.out}, n_threads);
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

}  // namespace tesseral

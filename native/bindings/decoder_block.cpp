#include "cpu/decoder_block.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "addresses.h"
#include "bindings.h"
#include "bound_attention.h"
#include "quantized_linears.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tesseral {
namespace {

using Address = std::uintptr_t;
using Three = std::tuple<std::int64_t, std::int64_t, std::int64_t>;

HeadSteps steps_of(const Three& steps) {
  return {std::get<0>(steps), std::get<1>(steps), std::get<2>(steps)};
}

// Addresses of codes, scale and offset, and the steps of the first and of both others.
using Places = std::tuple<Address, Address, Address, Three, Three>;

HeadPlaces places_of(const Places& given) {
  HeadPlaces places;
  places.codes = pointer<std::uint8_t>(std::get<0>(given));
  places.scale = pointer<std::uint16_t>(std::get<1>(given));
  places.offset = pointer<std::uint16_t>(std::get<2>(given));
  places.code_steps = steps_of(std::get<3>(given));
  places.scale_steps = steps_of(std::get<4>(given));
  return places;
}

using Norm = std::tuple<Address, float>;

NormOfRows norm_of(const Norm& given) {
  return {pointer<const void>(std::get<0>(given)), std::get<1>(given)};
}

// Addresses of matrix (or 0) and clip, and the bits.
using Encoding = std::tuple<Address, Address, int>;

HeadEncoding encoding_of(const Encoding& given) {
  return {pointer<const float>(std::get<0>(given)), pointer<const float>(std::get<1>(given)),
          std::get<2>(given)};
}

class BoundBlock {
 public:
  BoundBlock(const std::string& element, std::int64_t head_dim, const Norm& attention_norm,
             const Norm& mlp_norm, const QuantizedLinears& attention_input,
             const QuantizedLinears& attention_output, const QuantizedLinears& mlp_input,
             const QuantizedLinears& mlp_hidden, Address query_factor, const Encoding& key,
             const Encoding& value) {
    block_.element = row_element(element);
    block_.head_dim = head_dim;
    block_.attention_norm = norm_of(attention_norm);
    block_.mlp_norm = norm_of(mlp_norm);
    block_.attention_input = attention_input.layers();
    block_.attention_output = attention_output.layers();
    block_.mlp_input = mlp_input.layers();
    block_.mlp_hidden = mlp_hidden.layers();
    block_.query_factor = pointer<const float>(query_factor);
    block_.key = encoding_of(key);
    block_.value = encoding_of(value);
  }

  void before(std::int64_t m, Address hidden, Address cosine, Address sine,
              std::int64_t rotary_step, Address query, const Places& key, const Places& value,
              int threads, const std::string& target) const {
    BeforeAttention call;
    call.m = m;
    call.hidden = pointer<const void>(hidden);
    call.cosine = pointer<const void>(cosine);
    call.sine = pointer<const void>(sine);
    call.rotary_step = rotary_step;
    call.query = pointer<void>(query);
    call.key = places_of(key);
    call.value = places_of(value);
    run(&before_attention, call, threads, target);
  }

  void after(std::int64_t m, Address attended, Address hidden, Address out, int threads,
             const std::string& target) const {
    AfterAttention call;
    call.m = m;
    call.attended = pointer<const void>(attended);
    call.hidden = pointer<const void>(hidden);
    call.out = pointer<void>(out);
    run(&after_attention, call, threads, target);
  }

  const DecoderBlock& block() const { return block_; }

 private:
  template <class Call>
  void run(Status (*function)(const Target&, const DecoderBlock&, const Call&, int),
           const Call& call, int threads, const std::string& target) const {
    const Target* const found = find_target(target);
    if (found == nullptr) throw std::invalid_argument("this machine has no target " + target);
    Status status;
    {
      nb::gil_scoped_release release;
      status = function(*found, block_, call, threads);
    }
    if (status != Status::ok) throw std::invalid_argument("sizes or threads are out of range");
  }

  DecoderBlock block_;
};

// Blocks one after the other, and where their caches lie.
class BoundBlocks {
 public:
  explicit BoundBlocks(const std::vector<const BoundBlock*>& blocks) {
    for (const BoundBlock* block : blocks) blocks_.push_back(&block->block());
  }

  void set_caches(const std::vector<std::pair<Places, Places>>& caches) {
    caches_.clear();
    for (const auto& [key, value] : caches) caches_.push_back({places_of(key), places_of(value)});
  }

  void token(std::int64_t m, Address hidden, Address out, Address cosine, Address sine,
             std::int64_t rotary_step, std::int64_t position, const BoundCall& attention,
             int threads, const std::string& target) const {
    TokenThroughBlocks call;
    call.m = m;
    call.hidden = pointer<const void>(hidden);
    call.out = pointer<void>(out);
    call.cosine = pointer<const void>(cosine);
    call.sine = pointer<const void>(sine);
    call.rotary_step = rotary_step;
    call.position = position;
    call.attention = attention.call;
    call.attention.sequences = attention.sequences.data();
    call.attention.n_sequences = static_cast<std::int64_t>(attention.sequences.size());
    const Target& found = target_named(target);
    Status status;
    {
      nb::gil_scoped_release release;
      status = through_blocks(found, blocks_, caches_, call, threads);
    }
    if (status != Status::ok) throw std::invalid_argument("sizes or threads are out of range");
  }

 private:
  std::vector<const DecoderBlock*> blocks_;
  std::vector<LayerCache> caches_;
};

}  // namespace

void bind_decoder_block(nb::module_& m) {
  nb::class_<BoundBlock>(m, "DecoderBlock")
      .def(nb::init<const std::string&, std::int64_t, const Norm&, const Norm&,
                    const QuantizedLinears&, const QuantizedLinears&, const QuantizedLinears&,
                    const QuantizedLinears&, Address, const Encoding&, const Encoding&>())
      .def("before", &BoundBlock::before)
      .def("after", &BoundBlock::after);
  nb::class_<BoundBlocks>(m, "DecoderBlocks")
      .def(nb::init<const std::vector<const BoundBlock*>&>(), nb::keep_alive<1, 2>(), "blocks"_a)
      .def("set_caches", &BoundBlocks::set_caches, "caches"_a)
      .def("token", &BoundBlocks::token);
}

}  // namespace tesseral

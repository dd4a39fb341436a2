#include "cpu/attention.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tesseral {
namespace {

Rows make_rows(std::uintptr_t data, std::int64_t batch, std::int64_t head, std::int64_t row) {
  return {reinterpret_cast<const void*>(data), batch, head, row};
}

const Target& target_named(const std::string& name) {
  const Target* const found = find_target(name);
  if (found == nullptr) throw std::invalid_argument("this machine has no target " + name);
  return *found;
}

using Integers = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Arrays come as addresses: the caller has checked their shapes and keeps them alive.
struct BoundCall {
  AttentionCall call;
  std::vector<Sequence> sequences;
  const Target* target = nullptr;
  int threads = 1;

  void set_target(const std::string& name, int n_threads) {
    target = &target_named(name);
    threads = n_threads;
  }

  void set_batch(std::int64_t batch, std::int64_t q_len, std::int64_t kv_len) {
    sequences.assign(static_cast<std::size_t>(batch), Sequence{});
    for (std::int64_t i = 0; i < batch; ++i) {
      Sequence& sequence = sequences[static_cast<std::size_t>(i)];
      sequence.batch = i;
      sequence.q_len = q_len;
      sequence.kv_len = kv_len;
    }
  }

  // Sequences that lie one after the other along the rows, or whose keys lie in blocks.
  void set_sequences(Integers q_starts, Integers q_lens, Integers kv_starts, Integers kv_lens,
                     std::optional<Table> blocks, std::int64_t block_size) {
    const std::size_t n = q_starts.shape(0);
    if (q_lens.shape(0) != n || kv_starts.shape(0) != n || kv_lens.shape(0) != n ||
        (blocks && blocks->shape(0) != n)) {
      throw std::invalid_argument("there must be one start, length and row of blocks a sequence");
    }
    sequences.assign(n, Sequence{});
    for (std::size_t i = 0; i < n; ++i) {
      sequences[i] = {0,          q_starts(i),
                      q_lens(i),  kv_starts(i),
                      kv_lens(i), blocks ? blocks->data() + i * blocks->shape(1) : nullptr};
    }
    call.block_size = block_size;
  }

  std::int64_t scratch_bytes(const std::string& target) const {
    return target_named(target).attention.scratch_floats(call) *
           static_cast<std::int64_t>(sizeof(float));
  }

  // Runs the call on arrays that lie so, at these addresses; 0 for none. The description stays as
  // it is, so that threads may share it.
  void run(std::uintptr_t query, std::uintptr_t key, std::uintptr_t key_scale,
           std::uintptr_t key_offset, std::uintptr_t value, std::uintptr_t value_scale,
           std::uintptr_t value_offset, std::uintptr_t mask, std::uintptr_t sinks,
           std::uintptr_t slopes, std::uintptr_t output, std::uintptr_t lse) const {
    const auto at = [](std::uintptr_t address) { return reinterpret_cast<const void*>(address); };
    if (target == nullptr) throw std::invalid_argument("a call needs a target before it runs");
    AttentionCall placed = call;
    placed.query.data = at(query);
    placed.key.rows.data = at(key);
    placed.key.scale.data = at(key_scale);
    placed.key.offset.data = at(key_offset);
    placed.value.rows.data = at(value);
    placed.value.scale.data = at(value_scale);
    placed.value.offset.data = at(value_offset);
    placed.mask.rows.data = at(mask);
    placed.sinks = static_cast<const float*>(at(sinks));
    placed.slopes = static_cast<const float*>(at(slopes));
    placed.output.data = at(output);
    placed.lse.data = at(lse);
    placed.sequences = sequences.data();
    placed.n_sequences = static_cast<std::int64_t>(sequences.size());
    nb::gil_scoped_release release;
    attention(*target, placed, threads);
  }
};

}  // namespace

#define FIELD(name, type)                                          \
  def_prop_rw(                                                     \
      #name, [](const BoundCall& self) { return self.call.name; }, \
      [](BoundCall& self, type value) { self.call.name = value; })

void bind_attention(nb::module_& m) {
  nb::enum_<Element>(m, "Element")
      .value("float32", Element::f32)
      .value("bfloat16", Element::bf16)
      .value("float16", Element::f16)
      .value("bits8", Element::bits8)
      .value("bits4", Element::bits4)
      .value("bits2", Element::bits2)
      .value("boolean", Element::boolean);
  nb::class_<Rows>(m, "Rows").def(
      "__init__", [](Rows* self, std::uintptr_t data, std::int64_t batch, std::int64_t head,
                     std::int64_t row) { new (self) Rows(make_rows(data, batch, head, row)); });
  nb::class_<KeyValueRows>(m, "KeyValueRows")
      .def("__init__",
           [](KeyValueRows* self, Element element, std::int64_t width, Rows rows) {
             new (self) KeyValueRows{element, width, rows, Element::f32, {}, {}};
           })
      .def_rw("scale_element", &KeyValueRows::scale_element)
      .def_rw("scale", &KeyValueRows::scale)
      .def_rw("offset", &KeyValueRows::offset);
  nb::class_<DenseMask>(m, "DenseMask")
      .def("__init__", [](DenseMask* self, Element element, Rows rows, std::int64_t column) {
        new (self) DenseMask{element, rows, column};
      });
  nb::class_<BoundCall>(m, "AttentionCall")
      .def(nb::init<>())
      .FIELD(element, Element)
      .FIELD(query, Rows)
      .FIELD(output, Rows)
      .FIELD(lse, Rows)
      .FIELD(key, KeyValueRows)
      .FIELD(value, KeyValueRows)
      .FIELD(q_heads, std::int64_t)
      .FIELD(kv_heads, std::int64_t)
      .FIELD(scale, float)
      .FIELD(softcap, float)
      .FIELD(slopes_sequence, std::int64_t)
      .FIELD(left, std::int64_t)
      .FIELD(right, std::int64_t)
      .FIELD(mask, DenseMask)
      .FIELD(strip_rows, std::int64_t)
      .FIELD(key_block, std::int64_t)
      .FIELD(split_keys, std::int64_t)
      .FIELD(stream_rows, std::int64_t)
      .FIELD(bf16_dot, bool)
      .FIELD(poison, bool)
      .def("set_batch", &BoundCall::set_batch, "batch"_a, "q_len"_a, "kv_len"_a)
      .def("set_sequences", &BoundCall::set_sequences, "q_starts"_a, "q_lens"_a, "kv_starts"_a,
           "kv_lens"_a, "blocks"_a.none(), "block_size"_a)
      .def("scratch_bytes", &BoundCall::scratch_bytes, "target"_a)
      .def("set_target", &BoundCall::set_target, "name"_a, "threads"_a)
      .def("copy", [](const BoundCall& self) { return self; })
      .def("run", &BoundCall::run, "query"_a, "key"_a, "key_scale"_a, "key_offset"_a, "value"_a,
           "value_scale"_a, "value_offset"_a, "mask"_a, "sinks"_a, "slopes"_a, "output"_a, "lse"_a);
  m.attr("ATTENTION_MAX_DIM") = attention_max_dim;
  m.attr("ATTENTION_MAX_KEY_BLOCK") = attention_max_key_block;
}

}  // namespace tesseral

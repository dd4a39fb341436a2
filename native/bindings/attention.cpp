#include "cpu/attention.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "bound_attention.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tesseral {
namespace {

Rows make_rows(std::uintptr_t data, std::int64_t batch, std::int64_t head, std::int64_t row) {
  return {reinterpret_cast<const void*>(data), batch, head, row};
}

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

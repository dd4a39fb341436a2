#include "cpu/quantized_linear.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings.h"
#include "quantized_linears.h"

namespace nb = nanobind;

namespace tesseral {

QuantizedLinears::QuantizedLinears(std::int64_t left, std::int64_t right,
                                   std::uintptr_t left_factor, std::uintptr_t right_factor,
                                   std::uintptr_t clip, int bits, std::int64_t group,
                                   const std::vector<Weight>& weights) {
  layers_.rows.left = left;
  layers_.rows.right = right;
  layers_.rows.left_factor = pointer<const float>(left_factor);
  layers_.rows.right_factor = pointer<const float>(right_factor);
  layers_.rows.clip = pointer<const float>(clip);
  layers_.rows.bits = bits;
  layers_.group = group;
  for (const auto& [codes, scale, bias, n] : weights) {
    LinearInt4Weight weight;
    weight.codes = pointer<const std::uint8_t>(codes);
    weight.scale = pointer<const float>(scale);
    weight.bias = pointer<const float>(bias);
    weight.n = n;
    layers_.weights.push_back(weight);
  }
}

void QuantizedLinears::run(const std::string& element, std::uintptr_t rows, std::int64_t stride,
                           std::int64_t m, const std::vector<std::uintptr_t>& outs, bool bf16,
                           int threads, const std::string& target) const {
  const Target* const found = find_target(target);
  if (found == nullptr) throw std::invalid_argument("this machine has no target " + target);
  std::vector<LinearInt4Weight> weights = layers_.weights;
  if (outs.size() != weights.size()) throw std::invalid_argument("an output for each weight");
  for (std::size_t i = 0; i < outs.size(); ++i) weights[i].out = pointer<void>(outs[i]);
  QuantizeRows input = layers_.rows;
  input.element = row_element(element);
  input.rows = pointer<const void>(rows);
  input.stride = stride;
  input.m = m;
  LinearInt4 products;
  products.weights = weights.data();
  products.n_weights = static_cast<int>(weights.size());
  products.group = layers_.group;
  products.output = bf16 ? LinearOutput::bf16 : LinearOutput::f32;
  Status status;
  {
    nb::gil_scoped_release release;
    status = quantized_linear(*found, input, products, threads);
  }
  if (status != Status::ok) throw std::invalid_argument("sizes or threads are out of range");
}

void bind_quantized_linear(nb::module_& m) {
  nb::class_<QuantizedLinears>(m, "QuantizedLinears")
      .def(nb::init<std::int64_t, std::int64_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, int,
                    std::int64_t, const std::vector<QuantizedLinears::Weight>&>())
      .def("run", &QuantizedLinears::run);
}

}  // namespace tesseral

#include "cpu/weight_only.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "addresses.h"
#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tesseral {
namespace {

// Addresses of codes, scale, bias (or 0) and out, and the number of rows.
using Weight =
    std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::int64_t>;

void run(const std::string& element, std::uintptr_t rows, std::int64_t stride, std::int64_t m,
         std::int64_t k, std::int64_t group, bool bf16, const std::vector<Weight>& weights,
         int threads, const std::string& target) {
  const Target* const found = find_target(target);
  if (found == nullptr) throw std::invalid_argument("this machine has no target " + target);
  std::vector<LinearInt4Weight> table;
  table.reserve(weights.size());
  for (const auto& [codes, scale, bias, out, n] : weights) {
    table.push_back({pointer<const std::uint8_t>(codes), pointer<const float>(scale),
                     pointer<const float>(bias), pointer<void>(out), n});
  }
  WeightOnly call;
  call.element = row_element(element);
  call.rows = pointer<const void>(rows);
  call.stride = stride;
  call.weights = table.data();
  call.n_weights = static_cast<int>(table.size());
  call.m = m;
  call.k = k;
  call.group = group;
  call.output = bf16 ? LinearOutput::bf16 : LinearOutput::f32;
  Status status;
  {
    nb::gil_scoped_release release;
    status = weight_only(*found, call, threads);
  }
  if (status != Status::ok) throw std::invalid_argument("sizes or threads are out of range");
}

}  // namespace

void bind_weight_only(nb::module_& m) {
  m.def("weight_only", &run, "element"_a, "rows"_a, "stride"_a, "m"_a, "k"_a, "group"_a, "bf16"_a,
        "weights"_a, "threads"_a, "target"_a,
        "Fill the output of every packed weight with its products with floating rows, plus its "
        "bias. Takes addresses.");
}

}  // namespace tesseral

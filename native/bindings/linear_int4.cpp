#include "cpu/linear_int4.h"

#include <nanobind/ndarray.h>
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

template <class T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void run(const LinearInt4& call, int threads, const std::string& target) {
  const Target* const found = find_target(target);
  if (found == nullptr) throw std::invalid_argument("this machine has no target " + target);
  Status status;
  {
    nb::gil_scoped_release release;
    status = linear_int4(*found, call, threads);
  }
  if (status != Status::ok) throw std::invalid_argument("sizes or threads are out of range");
}

void linear_int4_sums(Matrix<const std::int8_t> activations, Matrix<const std::uint8_t> weight,
                      Matrix<std::int32_t> out, int threads, const std::string& target) {
  LinearInt4Weight only;
  only.codes = weight.data();
  only.out = out.data();
  only.n = static_cast<std::int64_t>(weight.shape(0));
  LinearInt4 call;
  call.activations = activations.data();
  call.weights = &only;
  call.n_weights = 1;
  call.m = static_cast<std::int64_t>(activations.shape(0));
  call.k = call.group = call.stride = static_cast<std::int64_t>(activations.shape(1));
  if (static_cast<std::int64_t>(weight.shape(1)) != (call.k + 1) / 2 ||
      static_cast<std::int64_t>(out.shape(0)) != call.m ||
      static_cast<std::int64_t>(out.shape(1)) != only.n) {
    throw std::invalid_argument("shapes must be [m, k], [n, (k + 1) / 2] and [m, n]");
  }
  run(call, threads, target);
}

// Addresses of codes, scale, bias (or 0) and out, and the number of rows.
using Weight =
    std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::int64_t>;

void linear_int4_floats(std::uintptr_t activations, std::uintptr_t scale, std::int64_t m,
                        std::int64_t k, std::int64_t stride, std::int64_t group, bool bf16,
                        const std::vector<Weight>& weights, int threads,
                        const std::string& target) {
  std::vector<LinearInt4Weight> table;
  table.reserve(weights.size());
  for (const auto& [codes, weight_scale, bias, out, n] : weights) {
    LinearInt4Weight weight;
    weight.codes = pointer<const std::uint8_t>(codes);
    weight.scale = pointer<const float>(weight_scale);
    weight.bias = pointer<const float>(bias);
    weight.out = pointer<void>(out);
    weight.n = n;
    table.push_back(weight);
  }
  LinearInt4 call;
  call.activations = pointer<const std::int8_t>(activations);
  call.activation_scale = pointer<const float>(scale);
  call.weights = table.data();
  call.n_weights = static_cast<int>(table.size());
  call.m = m;
  call.k = k;
  call.stride = stride;
  call.group = group;
  call.output = bf16 ? LinearOutput::bf16 : LinearOutput::f32;
  run(call, threads, target);
}

}  // namespace

void bind_linear_int4(nb::module_& m) {
  m.def("linear_int4", &linear_int4_sums, "activations"_a.noconvert(), "weight"_a.noconvert(),
        "out"_a.noconvert(), "threads"_a, "target"_a,
        "Fill out[m, n] with activations[m, k] times the transpose of packed "
        "weight[n, k].");
  m.def("linear_int4_floats", &linear_int4_floats, "activations"_a, "scale"_a, "m"_a, "k"_a,
        "stride"_a, "group"_a, "bf16"_a, "weights"_a, "threads"_a, "target"_a,
        "Fill the output of every weight with scaled products, plus its bias. "
        "Takes addresses.");
  m.def("linear_int4_takes_groups", &linear_int4_takes_groups, "k"_a, "group"_a,
        "Whether rows of k weights may have a scale for every group of them.");
  m.attr("LINEAR_INT4_MAX_K") = linear_int4_max_k;
}

}  // namespace tesseral

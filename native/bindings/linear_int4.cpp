#include "cpu/linear_int4.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>

#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tesseral {
namespace {

template <class T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void linear_int4_into(Matrix<const std::int8_t> activations, Matrix<const std::uint8_t> weight,
                      Matrix<std::int32_t> out, int threads, const std::string& target) {
  const Target* const found = find_target(target);
  if (found == nullptr) throw std::invalid_argument("this machine has no target " + target);
  LinearInt4 call = {};
  call.activations = activations.data();
  call.weight = weight.data();
  call.out = out.data();
  call.m = static_cast<std::int64_t>(activations.shape(0));
  call.k = static_cast<std::int64_t>(activations.shape(1));
  call.n = static_cast<std::int64_t>(weight.shape(0));
  if (static_cast<std::int64_t>(weight.shape(1)) != (call.k + 1) / 2 ||
      static_cast<std::int64_t>(out.shape(0)) != call.m ||
      static_cast<std::int64_t>(out.shape(1)) != call.n) {
    throw std::invalid_argument("shapes must be [m, k], [n, (k + 1) / 2] and [m, n]");
  }
  Status status;
  {
    nb::gil_scoped_release release;
    status = linear_int4(*found, call, threads);
  }
  if (status != Status::ok) throw std::invalid_argument("sizes or threads are out of range");
}

}  // namespace

void bind_linear_int4(nb::module_& m) {
  m.def("linear_int4", &linear_int4_into, "activations"_a.noconvert(), "weight"_a.noconvert(),
        "out"_a.noconvert(), "threads"_a, "target"_a,
        "Fill out[m, n] with activations[m, k] times the transpose of packed weight[n, k].");
  m.attr("LINEAR_INT4_MAX_K") = linear_int4_max_k;
}

}  // namespace tesseral

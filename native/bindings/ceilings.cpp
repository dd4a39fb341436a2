#include "cpu/ceilings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <utility>

#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tesseral {
namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

const Target& checked(const std::string& target, int threads) {
  const Target* const found = find_target(target);
  if (found == nullptr) throw std::invalid_argument("this machine has no target " + target);
  if (threads < 1) throw std::invalid_argument("threads are out of range");
  return *found;
}

std::pair<double, double> product_rate(const std::string& kind, std::int64_t rounds, int threads,
                                       const std::string& target) {
  const Target& found = checked(target, threads);
  nb::gil_scoped_release release;
  const Rate rate = measure_products(found, kind, rounds, threads);
  return {rate.operations, rate.seconds};
}

std::pair<double, double> read_rate(Bytes data, int threads, const std::string& target) {
  const Target& found = checked(target, threads);
  const auto bytes = static_cast<std::int64_t>(data.shape(0));
  nb::gil_scoped_release release;
  const Rate rate = measure_read(found, data.data(), bytes, threads);
  return {rate.operations, rate.seconds};
}

}  // namespace

void bind_ceilings(nb::module_& m) {
  m.def("product_rate", &product_rate, "kind"_a, "rounds"_a, "threads"_a, "target"_a,
        "Operations and seconds of products from registers; no operations where there are none.");
  m.def("read_rate", &read_rate, "data"_a.noconvert(), "threads"_a, "target"_a,
        "Bytes and seconds of reading data once.");
}

}  // namespace tesseral

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "bindings.h"
#include "cpu/dispatch.h"
#include "cpu/threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tesseral {
namespace {

// (name, in the chip, saved by the operating system)
std::vector<std::tuple<std::string, bool, bool>> cpu_features() {
  std::vector<std::tuple<std::string, bool, bool>> rows;
  for (const Feature& feature : features_of(read_cpu())) {
    rows.emplace_back(feature.name, feature.in_chip, feature.saved_by_system);
  }
  return rows;
}

// (name, features it needs), the widest first
std::vector<std::tuple<std::string, std::vector<std::string>>> cpu_targets() {
  std::vector<std::tuple<std::string, std::vector<std::string>>> rows;
  for (const Target& target : targets()) rows.emplace_back(target.name, target.needs);
  return rows;
}

}  // namespace

void bind_cpu(nb::module_& m) {
#if defined(__clang__)
  m.attr("COMPILER") = __VERSION__;
#else
  m.attr("COMPILER") = "GCC " __VERSION__;
#endif
  m.def("cpu_brand", &cpu_brand, "Name the chip gives itself; empty where it cannot be asked.");
  m.def("cpu_features", &cpu_features,
        "Instruction sets as (name, in the chip, saved by the operating system).");
  m.def(
      "share_openmp", [](const std::string& library) { return share_openmp(library.c_str()); },
      "library"_a,
      "Run kernels on the threads of an OpenMP library that is loaded; whether that can be.");
  m.def("cpu_targets", &cpu_targets,
        "Targets the kernels were built for, the widest first, as (name, features needed).");
}

}  // namespace tesseral

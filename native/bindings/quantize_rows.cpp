#include "cpu/quantize_rows.h"

#include <nanobind/stl/string.h>

#include <stdexcept>

#include "addresses.h"
#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tesseral {
namespace {

void run(const QuantizeRows& call, int threads, const std::string& target) {
  const Target* const found = find_target(target);
  if (found == nullptr) throw std::invalid_argument("this machine has no target " + target);
  Status status;
  {
    nb::gil_scoped_release release;
    status = quantize_rows(*found, call, threads);
  }
  if (status != Status::ok) throw std::invalid_argument("sizes or threads are out of range");
}

void quantize(const std::string& element, std::uintptr_t rows, std::int64_t stride, std::int64_t m,
              std::int64_t left, std::int64_t right, std::uintptr_t left_factor,
              std::uintptr_t right_factor, std::uintptr_t clip, int bits, std::uintptr_t codes,
              std::int64_t codes_stride, std::uintptr_t scale, int threads,
              const std::string& target) {
  QuantizeRows call;
  call.element = row_element(element);
  call.rows = pointer<const void>(rows);
  call.stride = stride;
  call.m = m;
  call.left = left;
  call.right = right;
  call.left_factor = pointer<const float>(left_factor);
  call.right_factor = pointer<const float>(right_factor);
  call.clip = pointer<const float>(clip);
  call.bits = bits;
  call.codes = pointer<std::int8_t>(codes);
  call.codes_stride = codes_stride;
  call.scale = pointer<float>(scale);
  run(call, threads, target);
}

void transform(const std::string& element, std::uintptr_t rows, std::int64_t stride, std::int64_t m,
               std::int64_t left, std::int64_t right, std::uintptr_t left_factor,
               std::uintptr_t right_factor, std::uintptr_t out, int threads,
               const std::string& target) {
  QuantizeRows call;
  call.element = row_element(element);
  call.rows = pointer<const void>(rows);
  call.stride = stride;
  call.m = m;
  call.left = left;
  call.right = right;
  call.left_factor = pointer<const float>(left_factor);
  call.right_factor = pointer<const float>(right_factor);
  call.dense = pointer<void>(out);
  run(call, threads, target);
}

}  // namespace

void bind_quantize_rows(nb::module_& m) {
  m.def("quantize_rows", &quantize, "element"_a, "rows"_a, "stride"_a, "m"_a, "left"_a, "right"_a,
        "left_factor"_a, "right_factor"_a, "clip"_a, "bits"_a, "codes"_a, "codes_stride"_a,
        "scale"_a, "threads"_a, "target"_a,
        "Transform rows and turn them into codes with scales. Takes addresses; 0 for no factor.");
  m.def("transform_rows", &transform, "element"_a, "rows"_a, "stride"_a, "m"_a, "left"_a, "right"_a,
        "left_factor"_a, "right_factor"_a, "out"_a, "threads"_a, "target"_a,
        "Transform rows and round them to their own type. Takes addresses; 0 for no factor.");
}

}  // namespace tesseral

#include "cpu/model_rows.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <stdexcept>
#include <tuple>

#include "addresses.h"
#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tesseral {
namespace {

template <class Call>
void run(Status (*function)(const Target&, const Call&, int), const Call& call, int threads,
         const std::string& target) {
  const Target* const found = find_target(target);
  if (found == nullptr) throw std::invalid_argument("this machine has no target " + target);
  Status status;
  {
    nb::gil_scoped_release release;
    status = function(*found, call, threads);
  }
  if (status != Status::ok) throw std::invalid_argument("sizes or threads are out of range");
}

void run_norm_rows(const std::string& element, std::uintptr_t rows, std::int64_t stride,
                   std::int64_t m, std::int64_t n, std::uintptr_t weight, float epsilon,
                   std::uintptr_t out, int threads, const std::string& target) {
  NormRows call;
  call.element = row_element(element);
  call.rows = pointer<const void>(rows);
  call.stride = stride;
  call.m = m;
  call.n = n;
  call.weight = pointer<const void>(weight);
  call.epsilon = epsilon;
  call.out = pointer<void>(out);
  run(&norm_rows, call, threads, target);
}

using Steps = std::tuple<std::int64_t, std::int64_t, std::int64_t>;

HeadSteps steps_of(const Steps& steps) {
  return {std::get<0>(steps), std::get<1>(steps), std::get<2>(steps)};
}

HeadRows heads(const std::string& element, const Steps& sizes, std::int64_t dim,
               std::uintptr_t rows, const Steps& steps, std::uintptr_t factor) {
  HeadRows call;
  call.element = row_element(element);
  std::tie(call.batch, call.heads, call.tokens) = sizes;
  call.dim = dim;
  call.rows = pointer<const void>(rows);
  call.row_steps = steps_of(steps);
  call.factor = pointer<const float>(factor);
  return call;
}

void transform_heads(const std::string& element, const Steps& sizes, std::int64_t dim,
                     std::uintptr_t rows, const Steps& steps, std::uintptr_t factor,
                     std::uintptr_t out, const Steps& out_steps, int threads,
                     const std::string& target) {
  HeadRows call = heads(element, sizes, dim, rows, steps, factor);
  call.out = pointer<void>(out);
  call.out_steps = steps_of(out_steps);
  run(&head_rows, call, threads, target);
}

void encode_heads(const std::string& element, const Steps& sizes, std::int64_t dim,
                  std::uintptr_t rows, const Steps& steps, std::uintptr_t factor,
                  std::uintptr_t clip, int bits, std::uintptr_t codes, const Steps& code_steps,
                  std::uintptr_t scale, std::uintptr_t offset, const Steps& scale_steps,
                  int threads, const std::string& target) {
  HeadRows call = heads(element, sizes, dim, rows, steps, factor);
  call.clip = pointer<const float>(clip);
  call.bits = bits;
  call.codes = pointer<std::uint8_t>(codes);
  call.code_steps = steps_of(code_steps);
  call.scale = pointer<std::uint16_t>(scale);
  call.offset = pointer<std::uint16_t>(offset);
  call.scale_steps = steps_of(scale_steps);
  run(&head_rows, call, threads, target);
}

void run_dense_rows(const std::string& element, std::uintptr_t rows, std::uintptr_t weight,
                    std::uintptr_t out, std::int64_t m, std::int64_t n, std::int64_t k, int threads,
                    const std::string& target) {
  DenseRows call;
  call.element = row_element(element);
  call.rows = pointer<const void>(rows);
  call.weight = pointer<const void>(weight);
  call.out = pointer<void>(out);
  call.m = m;
  call.n = n;
  call.k = k;
  run(&dense_rows, call, threads, target);
}

}  // namespace

void bind_model_rows(nb::module_& m) {
  m.def("norm_rows", &run_norm_rows, "element"_a, "rows"_a, "stride"_a, "m"_a, "n"_a, "weight"_a,
        "epsilon"_a, "out"_a, "threads"_a, "target"_a,
        "Divide rows by their root mean square and scale them. Takes addresses.");
  m.def("transform_heads", &transform_heads, "element"_a, "sizes"_a, "dim"_a, "rows"_a, "steps"_a,
        "factor"_a, "out"_a, "out_steps"_a, "threads"_a, "target"_a,
        "Multiply heads by a matrix. Takes addresses.");
  m.def("encode_heads", &encode_heads, "element"_a, "sizes"_a, "dim"_a, "rows"_a, "steps"_a,
        "factor"_a, "clip"_a, "bits"_a, "codes"_a, "code_steps"_a, "scale"_a, "offset"_a,
        "scale_steps"_a, "threads"_a, "target"_a,
        "Turn heads into codes, the matrix 0 being none. Takes addresses.");
  m.def("dense_rows", &run_dense_rows, "element"_a, "rows"_a, "weight"_a, "out"_a, "m"_a, "n"_a,
        "k"_a, "threads"_a, "target"_a,
        "Multiply few rows with the transpose of a dense weight. Takes addresses.");
  m.attr("HEAD_ROWS_MULTIPLE") = head_rows_multiple;
  m.attr("DENSE_ROWS_MOST") = dense_rows_most;
  m.attr("DENSE_ROWS_MULTIPLE") = dense_rows_multiple;
}

}  // namespace tesseral

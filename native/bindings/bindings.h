#pragma once

#include <nanobind/nanobind.h>

namespace tesseral {

void bind_ceilings(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_cpu(nanobind::module_& m);
void bind_decoder_block(nanobind::module_& m);
void bind_linear_int4(nanobind::module_& m);
void bind_model_rows(nanobind::module_& m);
void bind_quantize_rows(nanobind::module_& m);
void bind_quantized_linear(nanobind::module_& m);
void bind_weight_only(nanobind::module_& m);

}  // namespace tesseral

// The Python module tesseral._native: one function per family, each in its own file.
#include "bindings.h"

NB_MODULE(_native, m) {
  m.doc() = "Native kernels of tesseral.";
  tesseral::bind_ceilings(m);
  tesseral::bind_attention(m);
  tesseral::bind_cpu(m);
  tesseral::bind_linear_int4(m);
  tesseral::bind_model_rows(m);
  tesseral::bind_quantize_rows(m);
  tesseral::bind_quantized_linear(m);
  tesseral::bind_decoder_block(m);
  tesseral::bind_weight_only(m);
}

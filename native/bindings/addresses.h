// What bindings that take addresses share.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "tesseral/quantize_rows.h"

namespace tesseral {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline RowElement row_element(const std::string& name) {
  if (name == "float32") return RowElement::f32;
  if (name == "bfloat16") return RowElement::bf16;
  if (name == "float16") return RowElement::f16;
  throw std::invalid_argument("rows cannot be of type " + name);
}

}  // namespace tesseral

// What a kernel answers: kernels neither throw nor print.
#pragma once

namespace tesseral {

enum class Status : int {
  ok = 0,
  invalid = 1,  // sizes or pointers break the contract stated beside the parameter struct
};

}  // namespace tesseral

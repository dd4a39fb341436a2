// Before a loop over an array of vectors: unrolled early, so that the array
// becomes registers. Without it GCC keeps such arrays on the stack wherever a
// function is not inlined.
#pragma once

#if defined(__clang__)
#define TESSERAL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TESSERAL_UNROLL _Pragma("GCC unroll 16")
#endif

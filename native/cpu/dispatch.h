// What this machine's CPU can run, and the kernels built for it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tesseral/attention.h"
#include "tesseral/ceilings.h"
#include "tesseral/dense_rows.h"
#include "tesseral/head_rows.h"
#include "tesseral/linear_int4.h"
#include "tesseral/norm_rows.h"
#include "tesseral/pointwise.h"
#include "tesseral/quantize_rows.h"
#include "tesseral/weight_only.h"

namespace tesseral {

// One instruction-set extension: does the chip have it, and does the operating system save the
// registers it needs when it switches between programs?
struct Feature {
  std::string name;
  bool in_chip;
  bool saved_by_system;

  bool usable() const { return in_chip && saved_by_system; }
};

// The words of CPUID and XGETBV that features are read from.
struct CpuWords {
  std::uint32_t leaf1_ecx = 0;
  std::uint32_t leaf7_ebx = 0;
  std::uint32_t leaf7_ecx = 0;
  std::uint32_t leaf7_edx = 0;
  std::uint32_t leaf7_1_eax = 0;
  std::uint64_t xcr0 = 0;
};

// One instruction set that kernels were built for.
struct Target {
  const char* name;
  std::vector<std::string> needs;  // names of features
  AttentionKernels attention;
  CeilingKernels ceilings;
  LinearInt4Kernels linear_int4;
  QuantizeRowsKernels quantize_rows;
  NormRowsKernels norm_rows;
  HeadRowsKernels head_rows;
  DenseRowsKernels dense_rows;
  PointwiseKernels pointwise;
  WeightOnlyKernels weight_only;
};

CpuWords read_cpu();
std::string cpu_brand();
std::vector<Feature> features_of(const CpuWords& words);

// Every target built into this module, the widest first.
const std::vector<Target>& targets();
// The needs of a target that the features do not meet; empty if it can run.
std::vector<std::string> missing(const Target& target, const std::vector<Feature>& features);
// The target of that name if this machine can run it, else a null pointer.
const Target* find_target(const std::string& name);

}  // namespace tesseral

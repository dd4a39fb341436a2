"""Products of codes in CUDA C++, for instructions that Triton does not emit."""

"""Products of 4-bit codes and the rows they read, in Triton on CUDA devices."""

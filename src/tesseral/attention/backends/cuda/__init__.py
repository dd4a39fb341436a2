"""Attention in CUDA C++ for the GPUs that Triton leaves out, compiled when first called."""

"""CUDA devices, and programs in CUDA C++ that need no toolkit; torch is imported when asked."""

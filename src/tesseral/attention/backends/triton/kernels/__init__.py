"""The kernels. Importing one needs Triton; everything else in this backend does not."""

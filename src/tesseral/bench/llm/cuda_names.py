"""Names of what is compared on a CUDA device."""

FP16 = "transformers fp16, SDPA, compiled"
PLAIN = "int4 without transforms"
UNFUSED = "transforms unfused"
FUSED = "transforms fused"

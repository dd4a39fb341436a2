"""The same benchmark on a CUDA device: other cases, other peers, another clock."""

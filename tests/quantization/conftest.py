import torch
from hypothesis import settings

# products of tiny matrices: more threads would only wait for one another
torch.set_num_threads(1)

# a shared machine may stall any single example, and the same commit must give the same verdict
settings.register_profile("quantization", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("quantization")

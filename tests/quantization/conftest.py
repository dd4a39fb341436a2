from hypothesis import settings

# a shared machine may stall any single example, and the same commit must give the same verdict
settings.register_profile("quantization", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("quantization")

from hypothesis import settings

# a shared machine may stall any single example, and the same commit must give the same verdict
settings.register_profile("core", deadline=None, derandomize=True)
settings.load_profile("core")

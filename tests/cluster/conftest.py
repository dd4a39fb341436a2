from hypothesis import settings

settings.register_profile("cluster", deadline=None, derandomize=True)
settings.load_profile("cluster")

"""A language model looked at as tensors, as files and a page."""

"""Tensor-response regression: speed against a matrix product, memory, and what fits are worth."""

"""Exact attention, 4-bit language models, tensor clustering and tensor regression.

Each system is a room of its own: :mod:`tesseral.attention`,
:mod:`tesseral.quantization`, :mod:`tesseral.llm`, :mod:`tesseral.datasets`, over the
multilinear algebra of :mod:`tesseral.core`. Importing this module imports none of them.
"""

__version__ = "0.1.0"

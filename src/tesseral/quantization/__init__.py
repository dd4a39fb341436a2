"""Four-bit weights, activations and caches with learned affine transforms (FlatQuant).

This room works on any decoder block whose parts are named by a
:class:`~tesseral.quantization.placement.BlockLayout`; :mod:`tesseral.llm` knows the models.
"""

from tesseral.quantization.config import QuantizationConfig

__all__ = ["QuantizationConfig"]

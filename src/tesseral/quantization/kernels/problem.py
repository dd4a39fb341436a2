"""One integer linear product, described without arrays."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearProblem:
    """``codes @ weight.T`` with integer sums.

    Attributes
    ----------
    device : str
        Type of the device that holds codes and weight, as torch names it.
    weight_bits : int
        Width in which the weight's codes are stored: 2, 4 or 8.
    activation_bits : int
        Width of the activation's codes, 2 to 8.
    in_features : int
        Length of a row.
    """

    device: str
    weight_bits: int
    activation_bits: int
    in_features: int

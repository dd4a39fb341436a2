"""A tensor of low-bit integers with scales: what linear layers and attention both read."""

from dataclasses import dataclass
from typing import Any, Self

from array_api_compat import array_namespace

from tesseral._errors import DtypeError, ShapeError
from tesseral.core._arrays import dtype_name
from tesseral.core.packing import pack, packed_length, unpack


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedTensor:
    """Low-bit codes packed along the last axis, with one scale for each group of them.

    The value of a code ``q`` is ``scale * q`` with ``q`` signed when there is no offset, and
    ``scale * q + offset`` with ``q`` in ``[0, 2^bits)`` when there is one.

    Attributes
    ----------
    data : uint8 array of shape (..., ceil(length * bits / 8))
        Codes in the layout of :mod:`tesseral.core.packing`.
    scale : floating array of shape (..., groups)
        Scale of each group of ``length / groups`` neighbours along the last axis.
    offset : floating array of the shape of ``scale``, or None
        Value of code zero; ``None`` for symmetric quantisation.
    bits : {2, 4, 8}
        Width of a code.
    length : int
        Number of codes along the last axis.

    Raises
    ------
    ShapeError
        If the shapes of data, scale and offset do not belong together.
    DtypeError
        If ``data`` is not uint8.
    """

    data: Any
    scale: Any
    bits: int
    length: int
    offset: Any = None

    def __post_init__(self) -> None:
        if dtype_name(self.data) != "uint8":
            raise DtypeError(f"PackedTensor: data must be uint8, got {self.data.dtype}.")
        if self.data.shape[-1] != packed_length(self.length, self.bits):
            raise ShapeError(
                f"PackedTensor: data of shape {tuple(self.data.shape)} does not hold "
                f"{self.length} codes of {self.bits} bits along its last axis."
            )
        groups = self.scale.shape[-1]
        if self.scale.shape[:-1] != self.data.shape[:-1] or groups == 0 or self.length % groups:
            raise ShapeError(
                f"PackedTensor: scale of shape {tuple(self.scale.shape)} does not fit data of "
                f"shape {tuple(self.data.shape)} with {self.length} codes a row."
            )
        if self.offset is not None and self.offset.shape != self.scale.shape:
            raise ShapeError(
                f"PackedTensor: offset of shape {tuple(self.offset.shape)} does not fit scale "
                f"of shape {tuple(self.scale.shape)}."
            )

    @classmethod
    def from_codes(cls, codes: Any, scale: Any, offset: Any = None, *, bits: int) -> Self:
        """Pack integer ``codes`` of shape (..., length); see the class for the rest."""
        length = codes.shape[-1]
        return cls(data=pack(codes, bits), scale=scale, offset=offset, bits=bits, length=length)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of values."""
        return (*self.data.shape[:-1], self.length)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Data type of the values, which is that of the scales."""
        return self.scale.dtype

    @property
    def device(self) -> Any:
        """Device that holds the codes."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets together."""
        parts = (self.data, self.scale) if self.offset is None else self._arrays()
        return sum(int(part.nbytes) for part in parts)

    def codes(self) -> Any:
        """Return the codes, int8 (symmetric) or uint8, of shape (..., length)."""
        return unpack(self.data, self.bits, self.length, signed=self.offset is None)

    def dequantize(self, dtype: Any = None) -> Any:
        """Return the values as an array of shape (..., length).

        Parameters
        ----------
        dtype : data type, optional
            Type to compute in and return; that of ``scale`` by default.
        """
        xp = array_namespace(self.data)
        dtype = self.dtype if dtype is None else dtype
        groups = self.scale.shape[-1]
        codes = xp.astype(self.codes(), dtype)
        codes = xp.reshape(codes, (*codes.shape[:-1], groups, self.length // groups))
        values = codes * xp.astype(self.scale, dtype)[..., None]
        if self.offset is not None:
            values = values + xp.astype(self.offset, dtype)[..., None]
        return xp.reshape(values, self.shape)

    def __getitem__(self, index: Any) -> Self:
        """Index the leading axes; the last one holds packed codes and stays whole.

        Raises
        ------
        ShapeError
            If the index reaches the last axis.
        """
        key = index if isinstance(index, tuple) else (index,)
        named = sum(part is not None and part is not Ellipsis for part in key)
        if named >= self.ndim or Ellipsis in key:
            raise ShapeError(
                f"PackedTensor: index {index!r} must leave the last axis of shape {self.shape} "
                "alone; its codes are packed."
            )
        data, scale, offset = (None if a is None else a[key] for a in self._arrays())
        return type(self)(data=data, scale=scale, offset=offset, bits=self.bits, length=self.length)

    def _arrays(self) -> tuple[Any, Any, Any]:
        return self.data, self.scale, self.offset

"""Packing of 2-, 4- and 8-bit integers into bytes: bit arithmetic with an exact inverse.

Layout: codes run along the last axis. A byte holds ``8 // bits`` codes, the first in the
lowest bits; signed codes are two's complement. The last byte of a row is padded with zero
bits. A byte has no endianness, so the layout is the same on every machine.
"""

from typing import Any

from array_api_compat import array_namespace

from tesseral._errors import DtypeError, ParameterError, ShapeError

WIDTHS = (2, 4, 8)


def storage_bits(bits: int) -> int:
    """Return the width in which ``bits``-bit codes are stored: the next of 2, 4 and 8.

    Raises
    ------
    ParameterError
        If ``bits`` is not in 2 to 8.
    """
    if not 2 <= bits <= 8:
        raise ParameterError(f"storage_bits: bits={bits} cannot be packed; 2 to 8 can.")
    return next(width for width in WIDTHS if width >= bits)


def packed_length(length: int, bits: int) -> int:
    """Return the number of bytes that hold ``length`` codes of ``bits`` bits."""
    per_byte = 8 // _check_width(bits)
    return -(-length // per_byte)


def pack(codes: Any, bits: int) -> Any:
    """Pack integer codes along the last axis into bytes.

    Parameters
    ----------
    codes : integer array of shape (..., length)
        Signed codes in ``[-2^(bits-1), 2^(bits-1))`` or unsigned ones in ``[0, 2^bits)``;
        bits above the width are dropped.
    bits : {2, 4, 8}
        Width of a code.

    Returns
    -------
    uint8 array of shape (..., ceil(length * bits / 8))

    Raises
    ------
    ParameterError, DtypeError, ShapeError
        If the width is not one of 2, 4, 8, the codes are no integers, or have no axis.

    Examples
    --------
    >>> import numpy as np
    >>> pack(np.array([1, -1, 7]), bits=4)
    array([241,   7], dtype=uint8)
    """
    xp = array_namespace(codes)
    per_byte = 8 // _check_width(bits)
    if not xp.isdtype(codes.dtype, "integral"):
        raise DtypeError(f"pack: codes must be integers, got {codes.dtype}.")
    if codes.ndim == 0:
        raise ShapeError("pack: codes must have at least one axis, got a scalar.")
    fields = xp.astype(codes, xp.uint8)
    if per_byte == 1:
        return xp.asarray(fields, copy=True)
    fields = fields & (2**bits - 1)
    *lead, length = fields.shape
    padding = -length % per_byte
    if padding:
        zeros = xp.zeros((*lead, padding), dtype=xp.uint8, device=fields.device)
        fields = xp.concat([fields, zeros], axis=-1)
    fields = xp.reshape(fields, (*lead, (length + padding) // per_byte, per_byte))
    packed = fields[..., 0]
    for position in range(1, per_byte):
        packed = packed | (fields[..., position] << (bits * position))
    return packed


def unpack(packed: Any, bits: int, length: int, *, signed: bool) -> Any:
    """Undo :func:`pack`.

    Parameters
    ----------
    packed : uint8 array of shape (..., ceil(length * bits / 8))
        Bytes in the layout of this module.
    bits : {2, 4, 8}
        Width of a code.
    length : int
        Number of codes in a row.
    signed : bool
        Read the codes as two's complement.

    Returns
    -------
    int8 array (signed) or uint8 array of shape (..., length)

    Raises
    ------
    ParameterError, DtypeError, ShapeError
        If width, type or number of bytes do not fit.
    """
    xp = array_namespace(packed)
    per_byte = 8 // _check_width(bits)
    if packed.dtype != xp.uint8:
        raise DtypeError(f"unpack: packed codes are uint8, got {packed.dtype}.")
    if packed.ndim == 0 or packed.shape[-1] != packed_length(length, bits):
        raise ShapeError(
            f"unpack: {length} codes of {bits} bits fill {packed_length(length, bits)} bytes "
            f"along the last axis, got an array of shape {tuple(packed.shape)}."
        )
    if per_byte > 1:
        fields = [(packed >> (bits * i)) & (2**bits - 1) for i in range(per_byte)]
        *lead, n_bytes = packed.shape
        packed = xp.reshape(xp.stack(fields, axis=-1), (*lead, n_bytes * per_byte))[..., :length]
    if not signed:
        return packed
    # the sign bit weighs -2^(bits-1): flip it, then take that weight away
    sign = 2 ** (bits - 1)
    return xp.astype(xp.astype(packed ^ sign, xp.int16) - sign, xp.int8)


def _check_width(bits: int) -> int:
    if bits not in WIDTHS:
        raise ParameterError(f"packing: a width of {bits} bits cannot be packed; 2, 4 and 8 can.")
    return bits

"""A decoder block of few tokens, but for its attention, in two calls of a kernel."""

from collections.abc import Sequence
from typing import Any

from tesseral import _native
from tesseral._errors import DtypeError, ShapeError
from tesseral.core._arrays import address, dtype_name
from tesseral.core.kernel_arrays import check_dense, check_rows
from tesseral.core.quantized_linears import QuantizedLinears
from tesseral.runtime.cpu import cpu_target, cpu_threads

ROTATED_MULTIPLE = 2 * _native.HEAD_ROWS_MULTIPLE
"""Heads that the kernel turns have a multiple of so many elements."""

Encoding = tuple[Any, Any, int]
"""A matrix or None, a clip and a width, as :func:`tesseral.core.head_rows.encode_heads` takes."""


class DecoderBlock:
    """The layers, norms and encodings of a block, looked at once.

    What comes before attention is a norm, query, key and value, their rotary embedding, the
    query's matrix, and the encoding of keys and values. What comes after is the output layer, a
    residual sum, a norm, ``down(silu(gate) * up)`` and another sum. Each step is rounded to the
    type of the block, as it is when each is an operation of its own.

    Parameters
    ----------
    element : str
        Type of hidden states and norms: float32 or bfloat16.
    head_dim : int
        A multiple of :data:`ROTATED_MULTIPLE`.
    norms : pair of (array of shape (width,), float)
        Weight and epsilon of the norms before attention and MLP.
    layers : four QuantizedLinears
        Query, key and value; output; gate and up; down.
    query_factor : float32 array of shape (head_dim, head_dim), or None
    key, value : Encoding

    Raises
    ------
    DtypeError, ShapeError
        If they do not fit together.
    """

    def __init__(
        self,
        element: str,
        head_dim: int,
        norms: Sequence[tuple[Any, float]],
        layers: Sequence[QuantizedLinears],
        query_factor: Any,
        key: Encoding,
        value: Encoding,
    ) -> None:
        if element not in ("float32", "bfloat16"):
            raise DtypeError(f"DecoderBlock: must be float32 or bfloat16, got {element}.")
        self.element, self.head_dim, self.width = element, head_dim, layers[0].in_features
        self.heads = self._check_layers(layers)
        for weight, _ in norms:
            check_rows("norm", weight, element, (self.width,), "DecoderBlock")
        for factor in (query_factor, key[0], value[0]):
            if factor is not None:
                check_dense("factor", factor, "float32", head_dim, head_dim, "DecoderBlock")
        for _, clip, _ in (key, value):
            check_dense("clip", clip, "float32", 1, 2, "DecoderBlock")
        self._kept = norms, layers, query_factor, key, value
        first_norm, second_norm = ((address(weight), epsilon) for weight, epsilon in norms)
        first, output, gates, down = (layer.kernel for layer in layers)
        self._native = _native.DecoderBlock(
            element,
            head_dim,
            first_norm,
            second_norm,
            first,
            output,
            gates,
            down,
            0 if query_factor is None else address(query_factor),
            _encoding(key),
            _encoding(value),
        )

    def _check_layers(self, layers: Sequence[QuantizedLinears]) -> tuple[int, int]:
        """Return the numbers of heads of queries and of keys."""
        first, _, _, down = layers
        dim, width = self.head_dim, self.width
        sizes = [(layer.in_features, *layer.out_features) for layer in layers]
        heads = [n // dim for n in first.out_features]
        fits = (
            dim % ROTATED_MULTIPLE == 0
            and sizes[0] == (width, *(n * dim for n in heads))
            and len(heads) == 3
            and heads[1] == heads[2]
            and sizes[1] == (heads[0] * dim, width)
            and sizes[2] == (width, down.in_features, down.in_features)
            and down.out_features == [width]
        )
        if not fits:
            raise ShapeError(
                f"DecoderBlock: layers of sizes {sizes} and heads of {dim} do not make a block."
            )
        return heads[0], heads[1]

    def before(
        self,
        hidden: Any,
        rotary: tuple[Any, Any],
        query: Any,
        key: Sequence[Any],
        value: Sequence[Any],
        *,
        threads: int | None = None,
        target: str | None = None,
    ) -> None:
        """Fill ``query`` and the places of new keys and values.

        Parameters
        ----------
        hidden : array of shape (m, 1, width)
        rotary : pair of arrays of shape (m or 1, 1, head_dim)
            Cosines and sines of the tokens.
        query : array of shape (m, heads, 1, head_dim)
        key, value : (uint8, float16 and float16 arrays) of shape (m, kv_heads, 1, ...)
            As :func:`tesseral.core.head_rows.encode_heads` fills them.
        threads, target : optional
            As for :func:`~tesseral.core.int4.linear_int4`.
        """
        m = hidden.shape[0]
        dim, (n_heads, n_kv_heads) = self.head_dim, self.heads
        check_dense("hidden", hidden, self.element, m, self.width, "DecoderBlock")
        check_dense("query", query, self.element, m * n_heads, dim, "DecoderBlock")
        angles = rotary[0].shape[0]
        for part in rotary:
            check_dense("rotary", part, self.element, angles, dim, "DecoderBlock")
        if angles not in (1, m):
            raise ShapeError(f"DecoderBlock: angles of {angles} sequences do not fit {m}.")
        lead = (m, n_kv_heads, 1)
        self._native.before(
            m,
            address(hidden),
            address(rotary[0]),
            address(rotary[1]),
            dim if angles > 1 else 0,
            address(query),
            _places(key, lead),
            _places(value, lead),
            cpu_threads(threads),
            cpu_target(target),
        )

    def after(
        self,
        attended: Any,
        hidden: Any,
        out: Any,
        *,
        threads: int | None = None,
        target: str | None = None,
    ) -> None:
        """Fill ``out`` with the hidden states after the block.

        Parameters
        ----------
        attended : array of shape (m, heads, 1, head_dim)
        hidden, out : arrays of shape (m, 1, width)
            Hidden states before the block, and after it.
        threads, target : optional
            As for :func:`~tesseral.core.int4.linear_int4`.
        """
        m = hidden.shape[0]
        check_dense(
            "attended", attended, self.element, m * self.heads[0], self.head_dim, "DecoderBlock"
        )
        check_dense("hidden", hidden, self.element, m, self.width, "DecoderBlock")
        check_dense("out", out, self.element, m, self.width, "DecoderBlock")
        self._native.after(
            m,
            address(attended),
            address(hidden),
            address(out),
            cpu_threads(threads),
            cpu_target(target),
        )


class DecoderBlocks:
    """Blocks one after the other, attention included, through which one token passes in a call.

    Parameters
    ----------
    blocks : sequence of DecoderBlock
        Alike in type and sizes.

    Raises
    ------
    ShapeError
        If they are not.
    """

    def __init__(self, blocks: Sequence[DecoderBlock]) -> None:
        kinds = {(block.element, block.head_dim, block.width, block.heads) for block in blocks}
        if len(kinds) != 1:
            raise ShapeError(f"DecoderBlocks: blocks must be alike, got {sorted(map(str, kinds))}.")
        ((self.element, self.head_dim, self.width, self.heads),) = kinds
        self._kept = list(blocks)
        self._native = _native.DecoderBlocks([block._native for block in blocks])
        self._room: tuple[int, ...] = (0, 0, 0)

    def set_caches(self, caches: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> None:
        """Say where the blocks keep keys and values.

        Parameters
        ----------
        caches : sequence of pairs of (uint8, float16 and float16 arrays)
            As :meth:`DecoderBlock.before` takes them, of all tokens that there is room for. They
            are not kept: the caller does so as long as it calls :meth:`token`.
        """
        lead = tuple(caches[0][0][0].shape[:3])
        native = [(_places(key, lead), _places(value, lead)) for key, value in caches]
        self._native.set_caches(native)
        self._room = lead

    def token(
        self,
        hidden: Any,
        rotary: tuple[Any, Any],
        position: int,
        attention: Any,
        out: Any,
        *,
        threads: int | None = None,
        target: str | None = None,
    ) -> None:
        """Fill ``out`` with the hidden states behind the last block, and the caches' next places.

        Parameters
        ----------
        hidden, out : arrays of shape (m, 1, width)
            Not the same memory.
        rotary : pair of arrays of shape (m or 1, 1, head_dim)
        position : int
            Tokens that the caches hold.
        attention : _native.AttentionCall
            Attention of these queries to ``position + 1`` keys of a cache that lies as these do.
        threads, target : optional
            As for :func:`~tesseral.core.int4.linear_int4`.

        Raises
        ------
        ShapeError, DtypeError
            If arrays do not fit, or the caches have no room.
        """
        m, dim = hidden.shape[0], self.head_dim
        for name, array in (("hidden", hidden), ("out", out)):
            check_dense(name, array, self.element, m, self.width, "DecoderBlock")
        angles = rotary[0].shape[0]
        for part in rotary:
            check_dense("rotary", part, self.element, angles, dim, "DecoderBlock")
        if angles not in (1, m) or self._room[:2] != (m, self.heads[1]):
            raise ShapeError(
                f"DecoderBlocks: angles of {angles} sequences and caches of {self._room} do not "
                f"fit {m} sequences with {self.heads[1]} heads."
            )
        if not 0 <= position < self._room[2]:
            raise ShapeError(
                f"DecoderBlocks: position {position} lies past room for {self._room[2]}."
            )
        self._native.token(
            m,
            address(hidden),
            address(out),
            address(rotary[0]),
            address(rotary[1]),
            dim if angles > 1 else 0,
            position,
            attention,
            cpu_threads(threads),
            cpu_target(target),
        )


def _encoding(given: Encoding) -> tuple[int, int, int]:
    factor, clip, bits = given
    return 0 if factor is None else address(factor), address(clip), bits


def _places(arrays: Sequence[Any], lead: tuple[int, ...]) -> Any:
    data, scale, offset = arrays
    steps = data.stride(), scale.stride()
    fits = (
        data.shape[:3] == scale.shape[:3] == offset.shape[:3] == lead
        and steps[0][3] == 1
        and offset.stride() == steps[1]
        and [dtype_name(x) for x in arrays] == ["uint8", "float16", "float16"]
    )
    if not fits:
        shapes = [tuple(x.shape) for x in arrays]
        raise ShapeError(f"DecoderBlock: places of shapes {shapes} do not fit {lead} heads.")
    return address(data), address(scale), address(offset), steps[0][:3], steps[1][:3]

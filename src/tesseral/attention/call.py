"""Running a call that has been checked: by one backend, all sequences at once or one by one."""

import sys

from array_api_compat import array_namespace

from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.attention.registry import AttentionBackend
from tesseral.attention.sequences import Sequences, split
from tesseral.core._arrays import Array


def run(
    backend: AttentionBackend,
    problem: AttentionProblem,
    arrays: AttentionArrays,
    sequences: Sequences | None = None,
) -> tuple[Array, Array]:
    """Return output and lse as ``backend`` computes them, recorded by torch where it records.

    Parameters
    ----------
    backend : AttentionBackend
        One that supports ``problem``.
    problem : AttentionProblem
        The call.
    arrays : AttentionArrays
        Its arrays.
    sequences : Sequences, optional
        Where the sequences lie; ``None`` for a dense call.

    Returns
    -------
    output, lse : array
        Shapes as of :func:`tesseral.attention.attention`; with ``sequences``, of
        :func:`tesseral.attention.attention_varlen`.
    """
    if _is_recorded(arrays):
        from tesseral.attention.autograd import run_recorded

        return run_recorded(backend, problem, arrays, sequences)
    if sequences is None:
        return backend.forward(problem, arrays)
    together = getattr(backend, "forward_sequences", None)
    if together is not None:
        output, lse = together(problem, arrays, sequences)
        return output, lse
    return run_each(backend, problem, arrays, sequences)


def run_output(
    backend: AttentionBackend, problem: AttentionProblem, arrays: AttentionArrays
) -> Array:
    """Return the output of a dense call alone, from a backend that need not make the lse."""
    alone = getattr(backend, "output", None)
    if alone is None or _is_recorded(arrays):
        return run(backend, problem, arrays)[0]
    return alone(problem, arrays)


def run_each(
    backend: AttentionBackend,
    problem: AttentionProblem,
    arrays: AttentionArrays,
    sequences: Sequences,
) -> tuple[Array, Array]:
    """Return output and lse of every sequence, each a dense call of its own.

    Keys and values from a pool are gathered, one sequence at a time.

    Returns
    -------
    output : array of shape (total_q, q_heads, value_dim)
        Of the type of the query.
    lse : array of shape (total_q, q_heads)
        In float32, or float64 for float64 inputs.
    """
    xp = array_namespace(arrays.query)
    outputs, lses = [], []
    for alone, parts in split(problem, arrays, sequences):
        output, lse = backend.forward(alone, parts)
        outputs.append(xp.permute_dims(output[0], (1, 0, 2)))
        lses.append(lse[0].mT)
    if not outputs:  # no sequence, so no rows either
        lse_dtype = xp.float64 if problem.dtype == "float64" else xp.float32
        rows, heads, _ = arrays.query.shape
        place = arrays.query.device
        shape = (rows, heads, problem.value_dim)
        outputs = [xp.zeros(shape, dtype=arrays.query.dtype, device=place)]
        lses = [xp.zeros((rows, heads), dtype=lse_dtype, device=place)]
    return xp.concat(outputs, axis=0), xp.concat(lses, axis=0)


def _is_recorded(arrays: AttentionArrays) -> bool:
    """Return whether torch will want gradients of any of the arrays."""
    torch = sys.modules.get("torch")  # where it was not imported, there are no tensors
    if torch is None or not torch.is_grad_enabled():
        return False
    for name in AttentionArrays.__slots__:
        array = getattr(arrays, name)
        if array is not None and getattr(array, "requires_grad", False):
            return True
    return False

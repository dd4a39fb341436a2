"""The public entry: check the call, choose a backend, run it."""

from tesseral.attention.call import run, run_output
from tesseral.attention.explanation import Explanation, explain_problem
from tesseral.attention.mask import Window
from tesseral.attention.problem import AttentionArrays, state_problem
from tesseral.attention.registry import BACKENDS
from tesseral.core import PackedTensor
from tesseral.core._arrays import Array


def attention(
    query: Array,
    key: Array | PackedTensor,
    value: Array | PackedTensor,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    window: Window | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Array | tuple[Array, Array]:
    """Return exact attention: a softmax over the visible keys, applied to the values.

    Each rule given hides more or biases more; none replaces another. A query that sees no
    key gets zeros. Torch's autograd gets gradients of every floating array; those of quantised
    keys and values, and second derivatives, are refused with a ``BackendError`` when asked for.

    Parameters
    ----------
    query : array of shape (batch, q_heads, q_len, head_dim)
        NumPy array or torch tensor; float16, bfloat16, float32 or float64. Any strides.
    key : array or PackedTensor of shape (batch, kv_heads, kv_len, head_dim)
        ``kv_heads`` divides ``q_heads``: query head ``h`` reads key head
        ``h // (q_heads // kv_heads)``. Quantised keys are dequantised a tile at a time.
    value : array or PackedTensor of shape (batch, kv_heads, kv_len, value_dim)
        Dense keys and values are of the type of ``query``.
    mask : array that broadcasts to (batch, q_heads, q_len, kv_len), optional
        Boolean, True = visible; or floating, added to the scores.
    is_causal : bool
        Let query ``i`` see keys up to ``i + kv_len - q_len``: the last query sees all.
    scale : float, optional
        Factor of the scores; ``1 / sqrt(head_dim)`` by default.
    window : (left, right), optional
        Let query ``i`` see keys from ``left`` before to ``right`` after key
        ``i + kv_len - q_len``; -1 = unbounded.
    softcap : float, optional
        Bound the scaled scores by ``softcap * tanh(score / softcap)``, before bias and mask.
    sinks : array of shape (q_heads,), optional
        Logits that join the softmax denominator of their head, as a key of value zero.
    alibi_slopes : array of shape (q_heads,) or (batch, q_heads), optional
        Add ``-slope * |i + kv_len - q_len - j|`` to the score of query ``i`` and key ``j``.
    return_lse : bool
        Also return the logarithms of the softmax denominators.
    backend : str, optional
        Backend to use or fail. By default that of ``TESSERAL_ATTENTION_BACKEND``, or else
        the first that supports the call.

    Returns
    -------
    output : array of shape (batch, q_heads, q_len, value_dim)
        Of the framework, device and type of ``query``.
    lse : array of shape (batch, q_heads, q_len)
        Only with ``return_lse``: natural logarithm of the sum of ``exp(score)`` over visible
        keys and sink, in float32 (float64 for float64 inputs); ``-inf`` where there is none.

    Raises
    ------
    ShapeError, DtypeError, ParameterError
        If the arguments do not fit together; the message says which and how.
    BackendError
        If the backend asked for is unknown or cannot run the call.

    Examples
    --------
    >>> import numpy as np
    >>> query, key = np.zeros((1, 1, 2, 4)), np.zeros((1, 1, 2, 4))
    >>> value = np.array([[[[1.0], [3.0]]]])
    >>> attention(query, key, value, is_causal=True)
    array([[[[1.],
             [2.]]]])
    """
    arrays = AttentionArrays(
        query=query, key=key, value=value, mask=mask, sinks=sinks, alibi_slopes=alibi_slopes
    )
    problem = state_problem(
        arrays, is_causal=is_causal, scale=scale, window=window, softcap=softcap
    )
    chosen = BACKENDS.choose(problem, backend)
    if return_lse:
        return run(chosen, problem, arrays)
    return run_output(chosen, problem, arrays)


def explain(
    query: Array,
    key: Array | PackedTensor,
    value: Array | PackedTensor,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    window: Window | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    return_lse: bool = False,  # noqa: ARG001
    backend: str | None = None,
) -> Explanation:
    """Return how :func:`attention` would run the same call, without running it.

    Takes the arguments of :func:`attention` and raises what it would raise.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.zeros((1, 8, 2048, 64), dtype=np.float32)
    >>> print(explain(x, x, x, is_causal=True).blocks)
    BlockCount(full=4, partial=8, empty=4)
    """
    arrays = AttentionArrays(
        query=query, key=key, value=value, mask=mask, sinks=sinks, alibi_slopes=alibi_slopes
    )
    problem = state_problem(
        arrays, is_causal=is_causal, scale=scale, window=window, softcap=softcap
    )
    lengths = [(problem.q_len, problem.kv_len)]
    return explain_problem(problem, backend, lengths)

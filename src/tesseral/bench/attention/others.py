"""Libraries that are measured too where they are installed; imported only then."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from torch.utils.dlpack import from_dlpack

from tesseral.bench.attention.cases import Case
from tesseral.bench.attention.inputs import Inputs

Prepare = Callable[[Case, Inputs], Callable[[], Any]]
"""Given a case and its inputs, returns a function that makes the next call and gives a tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """A library.

    Attributes
    ----------
    module : str
        What must be installed.
    prepare : Prepare
        Brings arrays into its layout, which is not timed.
    """

    module: str
    prepare: Prepare


def _jax(case: Case, inputs: Inputs) -> Callable[[], Any]:
    jax = importlib.import_module("jax")

    def given(x: Any) -> Any:
        return jax.dlpack.from_dlpack(x.transpose(1, 2).contiguous())

    @jax.jit  # type: ignore[untyped-decorator]
    def compiled(query: Any, key: Any, value: Any) -> Any:
        return jax.nn.dot_product_attention(query, key, value, is_causal=case.causal)

    query = given(inputs.query)
    turns = cycle([(given(key), given(value)) for key, value in inputs.states])

    def call() -> Any:
        output = compiled(query, *next(turns)).block_until_ready()
        return from_dlpack(output).transpose(1, 2)

    return call


OTHERS: Mapping[str, Other] = {"jax": Other(module="jax", prepare=_jax)}
"""By name; each brings its own threads, as many as it likes."""


def installed_others(case: Case) -> dict[str, Other]:
    """Return those that are installed and read keys and values as the case stores them."""
    if case.kv_bits is not None:
        return {}
    return {n: other for n, other in OTHERS.items() if importlib.util.find_spec(other.module)}

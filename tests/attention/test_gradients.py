"""Torch records blockwise attention; its gradients are those of the oracle."""

import pytest
import torch

from attention.cases import blockwise, make_inputs, run
from tesseral.attention.backends.reference import ReferenceBackend

GENERATOR = torch.Generator().manual_seed(4)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=GENERATOR)


SHOWN = random(20, 40) > 0
SHOWN[7] = False  # a row that sees nothing
OPTIONS = {
    "full": {},
    "causal": {"is_causal": True},
    "window": {"window": (12, 3)},
    "softcap": {"softcap": 1.5, "is_causal": True},
    "boolean": {"mask": SHOWN},
    "bias": {"mask": random(1, 4, 20, 40)},
    "alibi": {"alibi_slopes": random(4).abs(), "is_causal": True},
    "sinks": {"sinks": random(4), "window": (5, 0)},
}


def gradients(forward, options, wanted):
    """Return the gradients of a random linear function of output and lse."""
    leaves = [torch.asarray(array).requires_grad_() for array in make_inputs(20, 40)]
    options = dict(options)
    for name, option in options.items():
        if isinstance(option, torch.Tensor) and option.is_floating_point():
            options[name] = option.clone().requires_grad_()
            leaves.append(options[name])
    output, lse = forward(*leaves[:3], **options)
    weights = torch.Generator().manual_seed(8)
    total = 0.0
    if "output" in wanted:
        total = (output * torch.randn(output.shape, dtype=output.dtype, generator=weights)).sum()
    if "lse" in wanted:
        lse = torch.where(lse.isfinite(), lse, 0.0)
        total = total + (lse * torch.randn(lse.shape, dtype=lse.dtype, generator=weights)).sum()
    return torch.autograd.grad(total, leaves, materialize_grads=True)


@pytest.mark.parametrize("wanted", [("output",), ("lse",), ("output", "lse")], ids="+".join)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradients_are_those_of_the_oracle(options, wanted):
    ours = gradients(blockwise, options, wanted)
    theirs = gradients(lambda *a, **o: run(ReferenceBackend(), *a, **o), options, wanted)
    assert len(ours) == 3 + any(
        name in options and options[name].is_floating_point()
        for name in ("mask", "sinks", "alibi_slopes")
    )
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    leaves = [random(1, heads, 9, 3).requires_grad_() for heads in (2, 1, 1)]
    sinks = random(2).requires_grad_()

    def forward(query, key, value, sinks):
        return blockwise(query, key, value, sinks=sinks, is_causal=True, softcap=2.0)

    assert torch.autograd.gradcheck(forward, (*leaves, sinks))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_gradients_come_back_in_the_type_of_the_inputs(dtype):
    leaves = [torch.asarray(a).to(dtype).requires_grad_() for a in make_inputs(20, 40)]
    output, _ = blockwise(*leaves, is_causal=True)
    output.sum().backward()
    assert all(leaf.grad.dtype == dtype and leaf.grad.isfinite().all() for leaf in leaves)

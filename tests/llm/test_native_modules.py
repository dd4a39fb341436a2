"""Norms and output layers through kernels give what transformers' give."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from tesseral.llm.native_modules import use_native_modules


class Model(torch.nn.Module):
    """A norm and an output layer."""

    def __init__(self, norm, *, bias=False):
        super().__init__()
        self.norm = norm(64)
        self.lm_head = torch.nn.Linear(64, 40, bias=bias)
        torch.nn.init.normal_(self.norm.weight)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, x):
        return self.lm_head(self.norm(x))


@pytest.mark.parametrize("norm", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 9), (0, 4)], ids=str)
def test_a_model_gives_the_same(norm, dtype, shape):
    torch.manual_seed(0)
    model = Model(norm).to(dtype)
    x = torch.randn(*shape, 64).to(dtype)
    with torch.no_grad():
        expected = model(x)
        use_native_modules(model)
        use_native_modules(model)  # again changes nothing
        found = model(x)
        strided = model(x.mT.contiguous().mT)
    step = torch.finfo(dtype).eps * (expected.abs().max() if expected.numel() else 1)
    assert found.dtype == dtype
    assert torch.allclose(found, expected, rtol=0, atol=4 * float(step))
    assert torch.equal(found, strided)
    assert type(model.norm).__name__ == norm.__name__
    assert list(model.state_dict()) == ["norm.weight", "lm_head.weight"]


def test_gradients_pass_as_before():
    model = Model(LlamaRMSNorm)
    x = torch.randn(1, 1, 64, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    use_native_modules(model)
    (found,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(found, expected)


def test_what_has_a_bias_or_another_type_stays():
    model = Model(LlamaRMSNorm, bias=True).double()
    x = torch.randn(1, 1, 64, dtype=torch.float64)
    expected = model(x)
    use_native_modules(model)
    assert torch.equal(model(x), expected)
    assert type(model.lm_head) is torch.nn.Linear

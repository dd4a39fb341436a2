"""Recorded steps do what steps do that are taken one by one."""

import pytest
import torch

from tesseral.quantization.calibration.recording import Recording


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replayed_step_changes_what_a_step_changes():
    device = torch.device("cuda")

    def descended(recorded):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(8, 8, device=device))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True, capturable=True)

        def step(x):
            loss = (
                torch.linalg.solve_ex(torch.eye(8, device=device) * 9 + weight, x)[0] ** 2
            ).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = Recording(step, device).run if recorded else (lambda tensors: step(*tensors))
        batches = [torch.randn(8, 3 if n == 6 else 5, device=device) for n in range(9)]
        return torch.stack([run([batch]) for batch in batches]), weight.detach()

    (losses, weight), (expected, expected_weight) = descended(True), descended(False)
    assert torch.allclose(losses, expected, rtol=1e-5)
    assert torch.allclose(weight, expected_weight, rtol=1e-5)

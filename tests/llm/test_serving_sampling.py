"""Each request is drawn as it says itself, whatever its neighbours in a step say."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TopPLogitsWarper

from support.models import tiny_llama
from tesseral.llm.serving_sampling import SamplingManager


@pytest.fixture(scope="module")
def steps():
    return SamplingManager(tiny_llama("tesseral"), [32]).logit_processor


def drawn_from(steps, scores, requests):
    """Return the scores that are left of each request, a dictionary of its own wishes."""
    states = [
        SimpleNamespace(has_new_token=True, state=SimpleNamespace(logit_processor_kwargs=wishes))
        for wishes in requests
    ]
    arguments = torch.zeros(steps.tensors_required, 8, dtype=torch.int32)
    steps.fill_defaults(arguments)
    arguments = steps.prepare_tensor_args(states, arguments)
    return steps(None, scores.clone(), arguments)


def test_every_request_gets_its_own(steps):
    scores = torch.randn(4, 61, generator=torch.Generator().manual_seed(0))
    draw = {"temperature": 1.0, "greedy": 0, "top_p": 1.0}
    requests = [
        draw,
        draw | {"greedy": 1},
        draw | {"temperature": 0.5, "top_p": 0.3},
        draw | {"temperature": 2.0},
    ]
    for wishes in requests:
        steps.check_kwargs(wishes)
    got = drawn_from(steps, scores, requests)
    assert torch.equal(got[0], scores[0])
    assert got[1].softmax(-1)[scores[1].argmax()] == 1
    assert torch.equal(got[2:3], TopPLogitsWarper(0.3)(None, scores[2:3] / 0.5))
    assert torch.equal(got[3], scores[3] / 2)


def test_of_equal_scores_the_first_is_the_likeliest(steps):
    wishes = {"temperature": 1.0, "greedy": 1, "top_p": 1.0}
    got = drawn_from(steps, torch.ones(1, 61), [wishes])
    assert got.softmax(-1)[0, 0] == 1

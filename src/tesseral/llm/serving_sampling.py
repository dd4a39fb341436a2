"""How tokens of several requests are drawn in one step, each as its own request says."""

from typing import Any, ClassVar

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingTopPLogitsWarper,
)

from tesseral.llm.batching import BatchingManager


class SamplingManager(BatchingManager):
    """A manager whose ``add_request`` takes temperature, top_p and greedy for each request.

    transformers' own way to choose the likeliest token of one request and draw another's
    (top_k = 1) sorts the vocabulary of all, as does top_p where nobody asked for it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        As of :func:`tesseral.llm.continuous_batching`.
    lengths : list of int
        Numbers of tokens, new ones included, of the requests to come.
    """

    def __init__(self, model: PreTrainedModel, lengths: list[int]) -> None:
        # transformers makes a step of sampling only where the default is not to leave it out
        generation = GenerationConfig(do_sample=True, temperature=0.5, top_p=0.5, top_k=0)
        generation.eos_token_id = model.generation_config.eos_token_id
        config = ContinuousBatchingConfig(per_request_processors=True)
        super().__init__(model, generation, config, lengths=lengths)
        steps = self.logit_processor
        temperature, top_p = steps.logits_processor
        steps.logits_processor[:] = [temperature, Greedy(), TopP(top_p)]
        steps.tensors_required = len(steps.logits_processor)
        steps._retrieve_processors_kwargs()


class Greedy(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]  # untyped to mypy
    """Leaves the likeliest token of requests that are ``greedy``, which is 0 or 1."""

    supported_kwargs: ClassVar = {"greedy": int}
    ignored_kwargs: ClassVar = ()

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Let requests be drawn."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Return what each request says."""
        kwargs = [request.state.logit_processor_kwargs for request in requests_with_new_token]
        return torch.tensor([given.get("greedy", 0) for given in kwargs], dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (n_tokens, vocabulary), all but the largest -inf."""
        rows = tensor_arg[: len(scores)].nonzero()[:, 0].to(scores.device)
        if len(rows) == 0:
            return scores
        best = scores[rows].argmax(dim=-1)
        scores = scores.index_fill(0, rows, -torch.inf)
        scores[rows, best] = 0
        return scores


class TopP(ContinuousBatchingTopPLogitsWarper):  # type: ignore[misc]
    """transformers' top_p, for the requests alone that ask for less than all."""

    def __init__(self, like: ContinuousBatchingTopPLogitsWarper) -> None:
        self.__dict__.update(like.__dict__)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (n_tokens, vocabulary), unlikely ones -inf."""
        wanted = tensor_arg[: len(scores)]
        rows = (wanted.view(torch.float32) < 1).nonzero()[:, 0].to(scores.device)
        if len(rows) == 0:
            return scores
        return scores.index_copy(0, rows, super().__call__(scores[rows], wanted[rows]))

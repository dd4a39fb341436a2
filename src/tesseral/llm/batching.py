"""Continuous batching: requests join and leave a batch at every step.

transformers schedules the requests. Its own manager refuses attention that it does not know,
so ours takes its place: it runs a model under our attention, with our paged cache.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchProcessor
from transformers.generation.continuous_batching.initialization import (
    update_cb_config_after_cache_creation,
)
from transformers.generation.continuous_batching.requests import GenerationOutput
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING
from transformers.generation.continuous_batching.utils import WorkloadHints

from tesseral._errors import DataError, ParameterError
from tesseral.llm.attention_interface import IMPLEMENTATION
from tesseral.llm.cache import kv_codecs
from tesseral.llm.paged_cache import PACKED, PagedKVCache, accepted_by, head_dim_of
from tesseral.quantization.kvcodec import KVCodec
from tesseral.runtime.extras import require

_TOKENS_AT_ONCE = 1024
"""Most tokens of a pass on a CPU, unless the caller says otherwise: bounds activations."""

_UNKNOWN_REQUESTS = [4096] * 16
"""Lengths of the requests that a cache is made for when nothing is known of those to come."""


def generate_batch(
    model: PreTrainedModel,
    inputs: Sequence[Sequence[int]],
    generation_config: GenerationConfig | None = None,
    continuous_batching_config: ContinuousBatchingConfig | None = None,
    *,
    max_new_tokens: int | None = None,
) -> dict[str, GenerationOutput]:
    """Continue many prompts with continuous batching under our attention.

    Stands in for ``model.generate_batch``, which refuses our attention.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A decoder with ``attn_implementation="tesseral"``, quantised or not.
    inputs : sequence of sequences of int
        Tokens of each prompt, without padding; at least one each.
    generation_config : transformers.GenerationConfig, optional
        How tokens are chosen; by default the model's.
    continuous_batching_config : transformers.ContinuousBatchingConfig, optional
        Size of cache and batch, order of requests. What it leaves open follows from the
        requests.
    max_new_tokens : int, optional
        Tokens to generate for each prompt, fewer if the text ends; by default as
        ``generation_config`` says.

    Returns
    -------
    dict of str to transformers' GenerationOutput
        In the order of the inputs; ``generated_tokens`` holds the new ones. With several
        sequences for each prompt they follow one another.

    Raises
    ------
    ParameterError
        If the model has another attention, or the options ask for what cannot be done.
    DataError
        If a prompt is empty or too long.
    """
    generation_config = _checked_generation(model, generation_config, max_new_tokens)
    new = generation_config.max_new_tokens
    prompts = [list(map(int, prompt)) for prompt in inputs]
    _check_lengths(model, prompts, new)
    if not prompts:
        return {}
    lengths = [len(prompt) + new for prompt in prompts]
    with continuous_batching(
        model, generation_config, continuous_batching_config, lengths=lengths
    ) as manager:
        names = manager.add_requests(prompts, max_new_tokens=new)
        children = range(manager.num_return_sequences - 1)
        ordered = [
            part for name in names for part in (name, *(f"{name}__child#{i}" for i in children))
        ]
        found = _collect(manager, len(ordered))
    return {name: found[name] for name in ordered}


@contextmanager
def continuous_batching(
    model: PreTrainedModel,
    generation_config: GenerationConfig | None = None,
    continuous_batching_config: ContinuousBatchingConfig | None = None,
    *,
    lengths: Sequence[int] | None = None,
) -> Iterator["BatchingManager"]:
    """Run a manager of continuous batching in a thread of its own.

    For requests that come one by one, as in a server; stands in for
    ``model.continuous_batching_context_manager``. At the end, pending requests are finished,
    or dropped if an exception ends the context.

    Parameters
    ----------
    model, generation_config, continuous_batching_config
        As of :func:`generate_batch`.
    lengths : sequence of int, optional
        Numbers of tokens, new ones included, of the requests to come; the cache is made to
        hold them, or as many of them as half of the free memory takes.

    Yields
    ------
    BatchingManager
        With the methods of transformers' manager: ``add_request``, ``get_result``,
        ``cancel_request`` and others.

    Raises
    ------
    ParameterError
        As :func:`generate_batch`.
    """
    manager = BatchingManager(model, generation_config, continuous_batching_config, lengths=lengths)
    manager.start()
    try:
        yield manager
    except BaseException:
        manager.stop(block=True, hard_stop=True)
        raise
    else:
        manager.stop(block=True)
    finally:
        manager.destroy()


class BatchingManager(ContinuousBatchingManager):  # type: ignore[misc]  # untyped to mypy
    """transformers' manager of continuous batching, for models under our attention.

    Made and ended by :func:`continuous_batching`, whose parameters it takes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        generation_config: GenerationConfig | None = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        *,
        lengths: Sequence[int] | None = None,
    ) -> None:
        _check_attention(model)
        config = copy.deepcopy(continuous_batching_config or ContinuousBatchingConfig())
        _fill_sizes(config, model, lengths)
        super().__init__(
            model=model,
            generation_config=_checked_generation(model, generation_config, None),
            continuous_batching_config=config,
            workload_hints=WorkloadHints(num_requests=len(lengths or ())),
        )
        _check_resolved(self.continuous_batching_config)

    def switch_to_cb_friendly_attn(self, model: PreTrainedModel, *_: Any) -> None:
        """Leave the model's attention as it is; transformers' manager would replace it."""
        _check_attention(model)

    def _create_batch_processor(self) -> ContinuousBatchProcessor:
        if self.batch_processor is not None:
            self.batch_processor.reset()
            return self.batch_processor
        config = self.continuous_batching_config
        cache = PagedKVCache(self.model, config, self.distributed_helper, _codec(self.model))
        self._use_prefix_sharing = cache.use_prefix_sharing
        settled = {
            "cb_config": config,
            "num_blocks": cache.num_blocks,
            "max_batch_tokens": cache.max_batch_tokens,
            "use_prefix_sharing": cache.use_prefix_sharing,
        }
        update_cb_config_after_cache_creation(
            **accepted_by(update_cb_config_after_cache_creation, settled)
        )
        scheduler = SCHEDULER_MAPPING[config.scheduler_type](
            cache=cache,
            safety_margin=config.safety_margin,
            max_requests_per_batch=config.max_requests_per_batch,
        )
        return ContinuousBatchProcessor(
            cache=cache,
            config=self.model.config.get_text_config(),
            generation_config=self.generation_config,
            continuous_batching_config=config,
            logit_processor=self.logit_processor,
            input_queue=self.input_queue if self.is_tp_driver else None,
            cancel_queue=self.cancel_queue if self.is_tp_driver else None,
            output_router=self.output_router,
            background_thread_status=self.background_thread_status,
            model_device=self.model.device,
            model_dtype=self.model.dtype,
            scheduler=scheduler,
            distributed_helper=self.distributed_helper,
        )

    def _generation_step(self) -> None:
        processor = self.batch_processor
        processor.cache.begin_step(processor.inputs_and_outputs.requests_in_batch)
        processor._generation_step(_PackedModel(self.model))


class _PackedModel:
    """A model that is told that its tokens are those of several requests.

    Without a mask, models would build one for all pairs of tokens.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        return self._model(**inputs | {"attention_mask": PACKED})


def _collect(manager: BatchingManager, count: int) -> dict[str, GenerationOutput]:
    """Wait for ``count`` requests and return them by name; raise if one cannot be finished."""
    found: dict[str, GenerationOutput] = {}
    while len(found) < count:
        output = manager.get_result(timeout=0.5)
        if output is None and manager.is_running():
            continue
        if output is None or output.error is not None:
            raise _failure(manager, output)
        if output.is_finished():
            found[output.request_id] = output
    return found


def _failure(manager: BatchingManager, output: GenerationOutput | None) -> Exception:
    """Return why a request failed: what ended the thread, if anything did."""
    status = manager.background_thread_status
    for _ in range(50):  # the thread says so a moment after it gives its requests up
        if status.fatal_error is not None:
            fatal: Exception = status.fatal_error
            return fatal
        time.sleep(0.01)
    reason = "the thread ended" if output is None else f"{output.request_id}: {output.error}"
    return DataError(f"generate_batch: a request failed; {reason}.")


def _codec(model: PreTrainedModel) -> KVCodec | None:
    """Return the codec of a model's first layer, None if no layer has one."""
    if all(getattr(module, "kv_codec", None) is None for module in model.modules()):
        return None
    return kv_codecs(model)[0]


def _check_attention(model: PreTrainedModel) -> None:
    implementation = model.config.get_text_config()._attn_implementation
    if implementation != IMPLEMENTATION:
        raise ParameterError(
            f"continuous batching: {type(model).__name__} uses attn_implementation="
            f"{implementation!r}; call model.set_attn_implementation({IMPLEMENTATION!r}) first, "
            "or model.generate_batch() for transformers' own."
        )


def _checked_generation(
    model: PreTrainedModel, config: GenerationConfig | None, max_new_tokens: int | None
) -> GenerationConfig:
    """Return a copy of the generation config that states when to stop."""
    config = copy.deepcopy(model.generation_config if config is None else config)
    if (config.num_beams or 1) != 1:
        raise ParameterError(
            f"continuous batching: num_beams={config.num_beams} is not supported; use "
            "model.generate()."
        )
    if config.eos_token_id is None:
        eos = model.config.get_text_config().eos_token_id
        config.eos_token_id = -1 if eos is None else eos
    if max_new_tokens is not None:
        config.max_new_tokens = max_new_tokens
    return config


def _check_lengths(model: PreTrainedModel, prompts: list[list[int]], new: int | None) -> None:
    if new is None or new < 1:
        raise ParameterError(
            f"generate_batch: max_new_tokens must be at least 1, got {new}; pass it or set it in "
            "generation_config."
        )
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for index, prompt in enumerate(prompts):
        if not prompt or (limit is not None and len(prompt) + new > limit):
            raise DataError(
                f"generate_batch: prompt {index} has {len(prompt)} tokens; it needs at least one "
                f"and, with {new} new ones, at most {limit}."
            )


def _check_resolved(config: ContinuousBatchingConfig) -> None:
    """Refuse what would replay or trace our attention, which no recording can hold."""
    asked = {
        "use_cuda_graph": any(config.cuda_graph_booleans),
        "use_async_batching": bool(config.use_async_batching),
        "varlen_compile_config": config.varlen_compile_config is not None,
        "decode_compile_config": config.decode_compile_config is not None,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise ParameterError(
                f"continuous batching: {name} is not supported under attn_implementation="
                f"{IMPLEMENTATION!r}; leave it unset."
            )


def _fill_sizes(
    config: ContinuousBatchingConfig, model: PreTrainedModel, lengths: Sequence[int] | None
) -> None:
    """Set the sizes of cache and batch that are left open, where memory is the computer's.

    transformers would take most of it.
    """
    if model.device.type != "cpu":
        return
    text = model.config.get_text_config()
    if config.max_batch_tokens is None:
        config.max_batch_tokens = _TOKENS_AT_ONCE
    if config.num_blocks is not None:
        return
    lengths = _UNKNOWN_REQUESTS if lengths is None else lengths
    page = getattr(config, "page_size", None) or config.block_size
    groups = group_layers_by_attn_type(text)
    # before transformers 5.23 blocks are counted for each group of layers by itself
    shares = 1 if isinstance(groups, dict) else len(groups[0])
    # one for what does not fill a block, and a fifth that the scheduler leaves free
    wanted = sum(-(-length // page) + 1 for length in lengths) * 5 // 4
    bytes_per_block = _bytes_per_token(text, model.dtype) * page
    psutil: Any = require("psutil", extra="llm", purpose="continuous batching on a CPU")
    possible = psutil.virtual_memory().available // 2 // bytes_per_block
    config.num_blocks = shares * max(1, min(wanted, possible))


def _bytes_per_token(text: Any, dtype: torch.dtype) -> int:
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * head_dim_of(text) * dtype.itemsize)

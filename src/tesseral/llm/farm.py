"""Quantising the blocks of a model on several devices at once.

With propagation off a block learns from what enters it in the original model, so it needs nothing
of the quantised blocks before. The original block's outputs are computed before it learns, and are
what the next block waits for. Norms are rescaled afterwards, block by block, for that does depend
on the quantised ones before; it takes a few sequences and no learning.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Lock

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tesseral.llm.blockwise import Last, moved, put_quantized, rescale_last_norm
from tesseral.llm.capture import block_arguments, hidden_states
from tesseral.llm.layouts import blocks_of, open_block
from tesseral.llm.resume import Progress
from tesseral.quantization.calibration.gains import SEQUENCES, entering_norms, rescale_norms
from tesseral.quantization.calibration.loop import calibrate_block
from tesseral.quantization.calibration.task import BlockTask, CalibrationStep, Report
from tesseral.quantization.config import QuantizationConfig

Read = Callable[[int, torch.device], nn.Module]
"""Returns a block with its weights on a device."""

_LOOK_S = 0.1


def quantize_blocks_apart(
    model: PreTrainedModel,
    config: QuantizationConfig,
    sequences: Tensor,
    store: Progress,
    report: Report,
    *,
    read: Read,
    devices: Sequence[torch.device],
) -> Tensor:
    """Quantise every block of a model, as many at a time as there are devices.

    Parameters
    ----------
    model, config, sequences, store, report
        As for :func:`~tesseral.llm.blockwise.quantize_blocks`; nothing propagates. Of each block
        its last step is reported.
    read : callable
        Returns a block with its weights on a device.
    devices : sequence of torch.device
        One block is in work on each; a device may stand there more than once.

    Returns
    -------
    (sequences, length, hidden) tensor
        What enters the last norm: of the quantised model where norms are rescaled, for some
        of the text, or of the original.

    Raises
    ------
    CalibrationError
        If the model, the loss or what was learned is not finite.
    """
    assert not config.propagate
    model.requires_grad_(False)
    _Learning(model, config, sequences, store, report, read).run(devices)
    return _finish(model, config, sequences, store, partial(read_on, read, devices[0]))


def read_on(read: Read, device: torch.device, index: int) -> nn.Module:
    """Return a block with its weights on a device."""
    return read(index, device)


class _Stopped(Exception):
    """Ends the work of a thread because another one failed."""


class _Learning:
    """Blocks that learn side by side."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: QuantizationConfig,
        sequences: Tensor,
        store: Progress,
        report: Report,
        read: Read,
    ) -> None:
        self._model, self._config, self._store = model, config, store
        self._report, self._read = report, read
        self._arguments = block_arguments(model, sequences[0])
        self._n_blocks = len(blocks_of(model))
        self._stop, self._lock = Event(), Lock()
        self._pending = pending_blocks(store, self._n_blocks)
        self._entering: dict[int, Tensor] = {}
        self._there = {index: Event() for index in range(self._n_blocks + 1)}
        for index in self._pending:
            kept = store.states("hidden", index)
            if kept is None and index == 0:
                batches = hidden_states(model, sequences, config.batch_size)
                kept = store.keep("hidden", 0, batches)
            if kept is not None and index - 1 not in self._pending:
                self._arrived(index, kept)

    def run(self, devices: Sequence[torch.device]) -> None:
        """Learn all blocks that are not learned yet."""
        for index in range(self._n_blocks):
            if index not in self._pending:
                self._report(_done_before(index, self._n_blocks))
        for device in devices:
            if device.type == "cuda":  # torch loads these libraries once, and not from two threads
                torch.linalg.eigh(torch.linalg.inv(torch.eye(2, device=device)))
        queue: SimpleQueue[int] = SimpleQueue()
        for index in self._pending:
            queue.put(index)
        with ThreadPoolExecutor(len(devices)) as pool:
            threads = [pool.submit(self._work, device, queue) for device in devices]
            try:
                wait(threads, return_when=FIRST_EXCEPTION)
            finally:
                if any(t.done() and t.exception() for t in threads) or not all(
                    t.done() for t in threads
                ):
                    self._stop.set()
        errors = [thread.exception() for thread in threads]
        for error in sorted(filter(None, errors), key=lambda e: isinstance(e, _Stopped)):
            raise error

    def _work(self, device: torch.device, queue: "SimpleQueue[int]") -> None:
        try:
            with _on(device):
                while True:
                    try:
                        index = queue.get_nowait()
                    except Empty:
                        return
                    self._learn(index, device)
        except BaseException:
            self._stop.set()
            raise

    def _learn(self, index: int, device: torch.device) -> None:
        while not self._there[index].wait(_LOOK_S):
            self._check()
        hidden = self._entering.pop(index)
        with self._lock:
            # reading goes through all modules of the model, which no thread may change meanwhile
            held = self._read(index, device)
            block = deepcopy(held)
            held.to("meta")
        layout, shape = open_block(block, self._model.config.model_type)
        task = BlockTask(
            block=block,
            layout=layout,
            shape=shape,
            arguments=moved(self._arguments[index], device),
            inputs=hidden,
            received=hidden,
            index=index,
            n_blocks=self._n_blocks,
            keep=partial(self._keep, index + 1),
        )
        last = Last(self._step)
        state, _ = calibrate_block(task, self._config.in_block(index), last)
        self._store.save_learned(index, state, last.facts)

    def _keep(self, index: int, batches: Iterable[Tensor]) -> Tensor:
        states = self._store.keep("hidden", index, batches)
        self._arrived(index, states)
        return states

    def _arrived(self, index: int, states: Tensor) -> None:
        self._entering[index] = states
        self._there[index].set()

    def _step(self, step: CalibrationStep) -> None:
        self._check()
        if step.epoch == step.n_epochs or step.rare_experts:
            with self._lock:
                self._report(step)

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped


def pending_blocks(store: Progress, n_blocks: int) -> list[int]:
    """Return the blocks that must learn, by number.

    A block that was learned learns again if the next one must and what enters that is gone.
    """
    pending = {
        index
        for index in range(n_blocks)
        if store.learned(index) is None and store.block(index) is None
    }
    for index in range(n_blocks, 0, -1):
        needs = index in pending or (index == n_blocks and bool(pending))
        if needs and store.states("hidden", index) is None:
            pending.add(index - 1)
    return sorted(pending)


@torch.no_grad()
def _finish(
    model: PreTrainedModel,
    config: QuantizationConfig,
    sequences: Tensor,
    store: Progress,
    read: Callable[[int], nn.Module],
) -> Tensor:
    """Rescale norms where that is asked for, and store every block for good."""
    n_blocks = len(blocks_of(model))
    if not config.rescales:
        for index in range(n_blocks):
            learned = store.learned(index)
            if learned is not None:
                store.save(index, learned, store.learned_facts(index))
        hidden = store.states("hidden", n_blocks)
        assert hidden is not None
        return hidden
    arguments = block_arguments(model, sequences[0])
    batches = hidden_states(model, sequences[:SEQUENCES], config.batch_size)
    original = received = store.keep("entering", 0, batches)
    for index in range(n_blocks):
        block = read(index)
        layout, shape = open_block(block, model.config.model_type)
        task = BlockTask(
            block=block,
            layout=layout,
            shape=shape,
            arguments=moved(arguments[index], next(block.parameters()).device),
            inputs=original,
            received=received,
            index=index,
            n_blocks=n_blocks,
        )
        done, learned = store.block(index), store.learned(index)
        norms = entering_norms(task, original) if done is None else {}
        original = store.keep("original", index + 1, task.run_all(original, config.batch_size))
        if done is not None:
            put_quantized(task, config, done)
        else:
            assert learned is not None
            put_quantized(task, config, learned)
            done = learned | rescale_norms(task, norms, received)
            store.save(index, done, store.learned_facts(index))
        received = store.keep("received", index + 1, task.run_all(received, config.batch_size))
        block.to("meta")
    rescale_last_norm(model, original, received)
    return received


def _done_before(index: int, n_blocks: int) -> CalibrationStep:
    return CalibrationStep(block=index, n_blocks=n_blocks, epoch=0, n_epochs=0, loss=None)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

"""A directory becomes a quantised one, whole or not at all, and the same however often it stops."""

import errno
import json
import os
import resource
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from support.checkpoints import (
    TEXT,
    change_config,
    change_weights,
    contents,
    same_tensors,
    save,
    tokenizer,
)
from support.models import tiny_llama, token_ids
from support.quantised import MODELS, logits_of, scramble
from tesseral._errors import (
    CalibrationError,
    CheckpointError,
    DataError,
    OutputExistsError,
    UnsupportedModelError,
)
from tesseral.datasets import load_books_excerpt, load_embedded_lm
from tesseral.llm import load, perplexity, pipeline, quantize
from tesseral.llm.layouts import blocks_of
from tesseral.llm.lazy_model import LazyModel
from tesseral.llm.resume import Progress
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.calibration import loop

IDS = token_ids(2, 9)


def settings(**changes):
    known = {"epochs": 1, "samples": 4, "sequence_length": 16, "batch_size": 2}
    return QuantizationConfig(**known | changes)


def stop_at(block):
    """Return a report that ends the run as Ctrl-C does, when a block is reported."""

    def report(step):
        if step.block == block:
            raise KeyboardInterrupt

    return report


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def whole(original, tmp_path_factory):
    """The output of a run that nothing interrupted."""
    return quantize(original, settings(), TEXT, tmp_path_factory.mktemp("whole") / "out")


@pytest.mark.parametrize("transform", ["flatquant", "hadamard", "none"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_loaded_is_what_was_made(name, transform, tmp_path, monkeypatch):
    made = {}

    def keep(progress, block, state, facts):
        made.update({f"{block}.{name}": t.clone() for name, t in state.items()})
        save_block(progress, block, state, facts)

    save_block = Progress.save
    monkeypatch.setattr(Progress, "save", keep)
    source = save(MODELS[name]("tesseral"), tmp_path / "model")
    out = quantize(source, settings(transform=transform), TEXT, tmp_path / "out")
    model, reader = load(out)
    assert same_tensors(blocks_of(model).state_dict(), made)
    assert reader(TEXT).input_ids == load(source)[1](TEXT).input_ids
    assert perplexity(model, reader, TEXT[:64], 16) < 1e4


@pytest.mark.parametrize("transform", ["flatquant", "hadamard", "none"])
@pytest.mark.parametrize("name", MODELS)
def test_without_rounding_a_loaded_model_says_what_the_original_says(
    name, transform, tmp_path, monkeypatch
):
    freeze = loop.frozen_state
    monkeypatch.setattr(loop, "frozen_state", lambda parts, *rest: freeze(scramble(parts), *rest))
    source = save(MODELS[name]("tesseral"), tmp_path / "model")
    config = settings(transform=transform, weight_bits=16, activation_bits=16, kv_bits=16, epochs=0)
    model, _ = load(quantize(source, config, TEXT, tmp_path / "out"))
    expected = logits_of(load(source)[0], IDS)
    assert (logits_of(model, IDS) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_not_quantised_keeps_its_bits(tmp_path, tied):
    model = tiny_llama(tie_word_embeddings=tied).to(torch.bfloat16)
    source = save(model, tmp_path / "model")
    out = quantize(source, settings(rescale_norms=False), TEXT, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (source, out))
    kept = [name for name in before if "layers" not in name]
    assert len(kept) == (2 if tied else 3)
    assert all(same_tensors({n: before[n]}, {n: after[n]}) for n in kept)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_output_has_all_files_and_nothing_else_stays(whole):
    assert names(whole) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert names(whole.parent) == ["out"]


def test_whoever_may_read_one_file_may_read_all(whole):
    assert len({file.stat().st_mode for file in whole.iterdir()}) == 1


def test_the_source_is_only_read(original, tmp_path):
    source = shutil.copytree(original, tmp_path / "model")
    before, times = contents(source), [f.stat().st_mtime_ns for f in source.iterdir()]
    quantize(source, settings(), TEXT, tmp_path / "out")
    assert contents(source) == before
    assert [f.stat().st_mtime_ns for f in source.iterdir()] == times


def test_nothing_is_printed(original, tmp_path, said):
    quantize(original, settings(), TEXT, tmp_path / "out")
    assert said() == ""


@pytest.mark.parametrize("transform", ["flatquant", "hadamard"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(original, tmp_path, transform):
    config = settings(transform=transform)
    whole = quantize(original, config, TEXT, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        quantize(original, config, TEXT, tmp_path / "out", report=stop_at(1))
    assert names(tmp_path) == [".out.partial", "whole"]
    steps = []
    out = quantize(original, config, TEXT, tmp_path / "out", report=steps.append)
    assert contents(out) == contents(whole)
    assert names(tmp_path) == ["out", "whole"]
    assert [(step.block, step.loss is None) for step in steps] == [
        (0, True),
        (1, transform == "hadamard"),
    ]


def killed(work, at, when):
    """Run ``work`` in a process that is killed before or after its ``at``-th file is in place."""
    child = os.fork()
    if child == 0:
        replace, calls = os.replace, []

        def fatal(*paths):
            calls.append(paths)
            if len(calls) == at and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)
            if len(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = fatal
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


N_FILES = (
    9  # the partial directory; four that enter blocks and one that enters none; two blocks; out
)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(1, N_FILES + 1))
def test_a_killed_run_goes_on_to_the_same_bytes(original, whole, tmp_path, at, when):
    out = tmp_path / "out"
    assert killed(lambda: quantize(original, settings(), TEXT, out), at, when)
    if not out.exists():
        quantize(original, settings(), TEXT, out)
        assert names(tmp_path) == ["out"]
    assert contents(out) == contents(whole)


def test_a_run_has_no_more_moments_to_be_killed_at(original, tmp_path):
    out = tmp_path / "out"
    assert not killed(lambda: quantize(original, settings(), TEXT, out), N_FILES + 1, "before")
    assert out.exists()


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(original, whole, tmp_path):
    out = tmp_path / "out"
    ends = [killed(lambda: quantize(original, settings(), TEXT, out), 5, "before") for _ in "123"]
    assert ends == [True, True, False]
    assert contents(out) == contents(whole)


def test_a_run_goes_on_without_running_blocks_that_are_done(original, tmp_path, monkeypatch):
    out, read = tmp_path / "out", []
    assert killed(lambda: quantize(original, settings(), TEXT, out), 6, "before")
    read_block = LazyModel.read_block

    def watched(lazy, index, **options):
        read.append(index)
        return read_block(lazy, index, **options)

    monkeypatch.setattr(LazyModel, "read_block", watched)
    quantize(original, settings(), TEXT, out)
    assert read == [1]


def learned(steps):
    """Return the blocks that were learned, and not taken from an earlier run."""
    return {step.block for step in steps if step.loss is not None}


CHANGES = {
    "not asked for": {"resume": False},
    "another configuration": {"config": settings(seed=1)},
    "another text": {"text": TEXT + "!"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_work_does_not_go_on_from_what_was_left(original, tmp_path, change):
    with pytest.raises(KeyboardInterrupt):
        quantize(original, settings(), TEXT, tmp_path / "out", report=stop_at(1))
    known = {"config": settings(), "text": TEXT} | CHANGES[change]
    steps = []
    out = quantize(original, out=tmp_path / "out", report=steps.append, **known)
    assert learned(steps) == {0, 1}
    assert contents(out) == contents(quantize(original, out=tmp_path / "fresh", **known))


def test_another_model_does_not_go_on_from_what_was_left(original, tmp_path):
    source = shutil.copytree(original, tmp_path / "model")
    with pytest.raises(KeyboardInterrupt):
        quantize(source, settings(), TEXT, tmp_path / "out", report=stop_at(1))
    change_weights(source, lambda state: state["model.embed_tokens.weight"].neg_())
    steps = []
    quantize(source, settings(), TEXT, tmp_path / "out", report=steps.append)
    assert learned(steps) == {0, 1}


def test_a_block_that_a_kill_cut_off_is_made_again(original, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        quantize(original, settings(), TEXT, tmp_path / "out", report=stop_at(1))
    (file,) = (tmp_path / ".out.partial").glob("block-*")
    file.write_bytes(file.read_bytes()[:-1])
    assert contents(quantize(original, settings(), TEXT, tmp_path / "out")) == contents(whole)


def test_an_existing_output_is_refused_before_any_work(original, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(pipeline, "LazyModel", None)
    with pytest.raises(OutputExistsError, match=r"out exists; .*--overwrite"):
        quantize(original, settings(), TEXT, tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_an_existing_output_is_replaced_when_asked(original, whole, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    out = quantize(original, settings(), TEXT, tmp_path / "out", overwrite=True)
    assert contents(out) == contents(whole)


FAILURES = {
    "Ctrl-C": (loop, "frozen_state", KeyboardInterrupt),
    "a loss that is not finite": (loop, "_check_finite", CalibrationError),
    "a full disk at the end": (pipeline, "save", OSError),
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_existing_output_survives_a_run_that_fails(original, tmp_path, monkeypatch, name):
    module, attribute, error = FAILURES[name]

    def fail(*_):
        raise error

    monkeypatch.setattr(module, attribute, fail)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("kept")
    with pytest.raises(error):
        quantize(original, settings(), TEXT, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == {"old": b"kept"}
    assert set(names(tmp_path)) <= {"out", ".out.partial"}


@pytest.mark.parametrize("place", [".", "..", "../.."], ids=["itself", "parent", "above"])
def test_an_output_that_holds_the_model_is_refused(original, tmp_path, place):
    source = shutil.copytree(original, tmp_path / "models" / "model")
    before = contents(tmp_path)
    with pytest.raises(OutputExistsError, match=r"holds the model .*; choose another output"):
        quantize(source, settings(), TEXT, source / place, overwrite=True)
    assert contents(tmp_path) == before


def test_a_full_disk_is_an_oserror_and_the_blocks_done_stay(original, whole, tmp_path, monkeypatch):
    def fill_the_disk(*_, **__):
        raise SafetensorError("Error: I/O error: No space left on device (os error 28)")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", fill_the_disk)
        with pytest.raises(OSError, match="No space left on device") as caught:
            quantize(original, settings(), TEXT, out)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == [".out.partial"]
    assert names(tmp_path / ".out.partial") == [
        "block-0000.safetensors",
        "block-0001.safetensors",
        "hidden-0002.bf16",
        "identity.json",
        "received-0002.bf16",
    ]
    assert contents(quantize(original, settings(), TEXT, out)) == contents(whole)


@contextmanager
def no_file_larger_than(n_bytes):
    """Let every write past ``n_bytes`` of a file fail, as the system does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("kept", "n_blocks"), [(4000, 0), (-1, 2)], ids=["a block", "the model"])
def test_a_file_that_cannot_grow_is_an_oserror_and_leaves_no_half(
    original, whole, tmp_path, kept, n_blocks
):
    limit = kept if kept > 0 else (whole / "model.safetensors").stat().st_size - 1
    with pytest.raises(OSError, match="File too large") as caught, no_file_larger_than(limit):
        quantize(original, settings(), TEXT, tmp_path / "out")
    assert caught.value.errno == errno.EFBIG
    assert names(tmp_path) == [".out.partial"]
    assert len(list((tmp_path / ".out.partial").glob("block-*"))) == n_blocks
    assert contents(quantize(original, settings(), TEXT, tmp_path / "out")) == contents(whole)


def refused(error, message, source, out, text=TEXT, config=None):
    with pytest.raises(error, match=message) as caught:
        quantize(source, config or settings(), text, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not out.with_name(f".{out.name}.partial").exists()


def test_a_missing_model_is_refused(tmp_path):
    refused(CheckpointError, "no such model directory", tmp_path / "model", tmp_path / "out")


def test_a_quantised_model_is_refused(whole, tmp_path):
    refused(CheckpointError, "out is quantised already; give the original", whole, tmp_path / "out")


def test_a_model_quantised_by_others_is_refused(original, tmp_path):
    source = shutil.copytree(original, tmp_path / "model")
    change_config(source, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(CheckpointError, "is quantised already", source, tmp_path / "out")


def test_a_model_that_says_it_has_no_quantisation_is_taken(original, tmp_path):
    source = shutil.copytree(original, tmp_path / "model")
    change_config(source, quantization_config=None)
    assert quantize(source, settings(epochs=0), TEXT, tmp_path / "out").is_dir()


def test_an_unknown_architecture_is_refused_before_weights_are_read(original, tmp_path):
    source = shutil.copytree(original, tmp_path / "model")
    (source / "model.safetensors").unlink()
    change_config(source, model_type="gpt2")
    refused(UnsupportedModelError, "'gpt2' is not supported", source, tmp_path / "out")


def test_an_unknown_type_is_refused_before_weights_are_read(original, tmp_path):
    source = shutil.copytree(original, tmp_path / "model")
    (source / "model.safetensors").unlink()
    change_config(source, dtype="float1")
    refused(CheckpointError, "'float1' as dtype", source, tmp_path / "out")


def test_a_text_shorter_than_a_sequence_is_refused(original, tmp_path):
    message = "has 15 tokens, fewer than one sequence of 16"
    refused(DataError, message, original, tmp_path / "out", TEXT[:15])


def test_a_tokenizer_of_another_model_is_refused(original, tmp_path):
    source = shutil.copytree(original, tmp_path / "model")
    tokenizer(70).save_pretrained(source)
    text = "page 12345678. " * 9
    refused(CheckpointError, "they do not belong together", source, tmp_path / "out", text)


def test_a_weight_that_is_not_finite_is_named_by_its_block(original, tmp_path):
    source = shutil.copytree(original, tmp_path / "model")
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(source, lambda state: state[name].fill_(float("nan")))
    with pytest.raises(CalibrationError, match="the original output of block 1 is not finite"):
        quantize(source, settings(), TEXT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_on_a_trained_model_hadamard_loses_less_than_round_to_nearest(tmp_path):
    text, losses = load_books_excerpt("test")[:20_000], {}
    model, reader = load(load_embedded_lm())
    losses["original"] = perplexity(model, reader, text, 256)
    for transform in ("hadamard", "none"):
        config = QuantizationConfig(transform=transform, samples=1, sequence_length=16)
        out = quantize(load_embedded_lm(), config, text, tmp_path / transform)
        losses[transform] = perplexity(*load(out), text, 256)
    assert losses["original"] < losses["hadamard"] < 0.7 * losses["none"]

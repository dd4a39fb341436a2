"""A directory that cannot be read gives one clear error; one that can gives its very weights."""

import json
import os
import pickle
import shutil
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging

from support.checkpoints import TEXT, change_config, change_weights, save
from support.models import tiny_llama, token_ids
from tesseral._errors import CheckpointError, ParameterError, UnsupportedModelError
from tesseral.llm import load, quantize
from tesseral.llm.attention_interface import IMPLEMENTATION
from tesseral.llm.loading import quiet, read_config, stored_dtype
from tesseral.quantization import QuantizationConfig


@pytest.fixture
def directory(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def cut(name, kept):
    """Return a change that keeps the first bytes of a file only."""

    def change(path):
        (path / name).write_bytes((path / name).read_bytes()[:kept])

    return change


def without(*names):
    return lambda path: [(path / name).unlink() for name in names]


def config(**changes):
    return lambda path: change_config(path, **changes)


def weights(change):
    return lambda path: change_weights(path, change)


def text(name, content):
    return lambda path: (path / name).write_text(content)


WEIGHT = "model.layers.1.mlp.up_proj.weight"

DAMAGE = {
    "no config.json": (without("config.json"), "not a model directory, it has no config.json"),
    "config.json cut off": (cut("config.json", 40), r"model/config\.json is damaged: "),
    "config.json binary": (
        lambda path: (path / "config.json").write_bytes(b"\xff\xfe\x00"),
        r"model/config\.json is damaged: ",
    ),
    "config.json a list": (text("config.json", "[]"), "names no model_type"),
    "config.json empty object": (text("config.json", "{}"), "names no model_type"),
    "size of another kind": (config(hidden_size="wide"), "the model cannot be read: .*hidden_size"),
    "no heads": (config(num_attention_heads=0), "the model cannot be read"),
    "no such dtype": (config(dtype="float1"), "names 'float1' as dtype, which is none"),
    "no weights": (without("model.safetensors"), "the model cannot be read: .*model.safetensors"),
    "empty weights": (cut("model.safetensors", 0), "the weights are damaged or cut off"),
    "weights cut in the header": (cut("model.safetensors", 50), "the weights are damaged or cut"),
    "weights cut at the end": (cut("model.safetensors", -1), "the weights are damaged or cut off"),
    "a weight is missing": (
        weights(lambda state: state.pop(WEIGHT)),
        f"do not fit config.json; missing tensors: 1, among them {WEIGHT}",
    ),
    "a weight is too many": (
        weights(lambda state: state.update(extra=torch.zeros(2))),
        "do not fit config.json; unexpected tensors: 1, among them extra",
    ),
    "a weight has another shape": (
        weights(lambda state: state.update({WEIGHT: torch.zeros(2, 2)})),
        f"do not fit config.json; mismatched tensors: 1, among them .*{WEIGHT}",
    ),
    "more layers than weights": (config(num_hidden_layers=3), "missing tensors: 9"),
    "fewer layers than weights": (config(num_hidden_layers=1), "unexpected tensors: 9"),
    "another vocabulary": (config(vocab_size=70), "mismatched tensors: 2"),
    "called quantised and is not": (
        config(quantization_config={"quant_method": "tesseral"}),
        "missing tensors: ",
    ),
    "no tokenizer": (
        without("tokenizer.json", "tokenizer_config.json"),
        "there is no tokenizer; copy its files",
    ),
    "tokenizer cut off": (cut("tokenizer.json", 40), "the tokenizer cannot be read: "),
    "tokenizer settings cut off": (cut("tokenizer_config.json", 9), "the tokenizer cannot be read"),
}


def to_quantize(directory):
    config = QuantizationConfig(epochs=0, samples=1, sequence_length=16)
    quantize(directory, config, TEXT, directory.with_name("out"))


@pytest.mark.parametrize("read", [load, to_quantize])
@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_has_one_clear_line(directory, name, read, said):
    change, message = DAMAGE[name]
    change(directory)
    if read is to_quantize and name == "called quantised and is not":
        message = "is quantised already"
    with pytest.raises(CheckpointError, match=message) as caught:
        read(directory)
    assert str(directory) in str(caught.value)
    assert not directory.with_name("out").exists()
    assert "\n" not in str(caught.value)
    assert said() == ""


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: there is no such model directory"):
        load(tmp_path / "nowhere")


def test_a_file_is_no_directory(original):
    with pytest.raises(CheckpointError, match="no such model directory"):
        load(original / "config.json")


@pytest.mark.parametrize("model_type", ["perceptron", "t5", 7], ids=str)
def test_an_unknown_architecture_is_named(directory, model_type):
    change_config(directory, model_type=model_type)
    with pytest.raises(UnsupportedModelError, match=f"{model_type!r} is no causal language model"):
        load(directory)


def test_code_in_the_directory_is_never_run(directory, said):
    marker = directory / "was run"
    code = f"open({str(marker)!r}, 'w')\nfrom transformers import LlamaConfig as C\n"
    (directory / "own.py").write_text(code)
    change_config(directory, model_type="own", auto_map={"AutoConfig": "own.C"})
    with pytest.raises(UnsupportedModelError):
        load(directory)
    # where transformers knows the architecture, its own code is used
    change_config(directory, model_type="llama")
    load(directory)
    assert not marker.exists()
    assert said() == ""


class _Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("read", [load, to_quantize])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_never_read(directory, name, read):
    marker = directory / "was run"
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(pickle.dumps(_Payload(marker)))
    with pytest.raises(CheckpointError, match=r"the model cannot be read|the weights are damaged"):
        read(directory)
    assert not marker.exists()


def test_weights_in_a_pickle_are_not_read_even_if_they_are_sound(directory):
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no file named model\.safetensors"):
        load(directory)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"bits": 4}, "unknown key 'bits'"), ({"version": 3}, "version must be one of 2, got 3")],
)
def test_an_unknown_quantisation_is_refused_in_its_own_words(directory, values, message):
    change_config(directory, quantization_config={"quant_method": "tesseral"} | values)
    with pytest.raises(ParameterError, match=message):
        load(directory)


def test_a_whole_directory_gives_its_weights_ready_to_use(original, said):
    model, tokenizer = load(original)
    expected = tiny_llama().state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())
    assert not model.training
    assert model.config._attn_implementation == IMPLEMENTATION
    assert tokenizer.decode(tokenizer("It was.").input_ids) == "It was."
    assert said() == ""


@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_are_tied_are_not_missing(tmp_path, tied):
    expected = tiny_llama(tie_word_embeddings=tied)
    model, _ = load(save(expected, tmp_path / "model"))
    with torch.no_grad():
        logits = model(token_ids(1, 5)).logits
        assert torch.allclose(logits, expected(token_ids(1, 5)).logits, atol=1e-4)


def test_on_the_cpu_half_precision_is_read_as_float32_unless_asked(tmp_path):
    path = save(tiny_llama().to(torch.bfloat16), tmp_path / "model")
    assert load(path)[0].dtype == torch.float32
    assert load(path, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("description", "dtype"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": None}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_the_stored_type_is_found_under_both_names(tmp_path, description, dtype):
    assert stored_dtype(tmp_path, description) == dtype


@pytest.mark.parametrize("name", ["zeros", "nn", "float1", 16, ["float32"]])
def test_a_stored_type_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="as dtype, which is none"):
        stored_dtype(tmp_path, {"dtype": name})


def test_reading_the_configuration_needs_no_weights(directory):
    (directory / "model.safetensors").unlink()
    assert read_config(directory) == json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize("shown", [True, False])
def test_quiet_leaves_transformers_as_it_was(shown):
    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    logging.set_verbosity_info()
    try:
        with suppress(KeyError), quiet():
            assert not logging.is_progress_bar_enabled()
            raise KeyError
        assert logging.is_progress_bar_enabled() == shown
        assert logging.get_verbosity() == logging.INFO
    finally:
        (logging.enable_progress_bar if before[0] else logging.disable_progress_bar)()
        logging.set_verbosity(before[1])

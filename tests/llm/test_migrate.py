"""A checkpoint of an older version becomes one of the present version that says the same."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import TEXT, change_config, contents, same_tensors
from support.models import token_ids
from support.quantised import logits_of
from tesseral._errors import CheckpointError, OutputExistsError
from tesseral.llm import load, quantize
from tesseral.llm.migrate import migrate
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.config import VERSION

IDS = token_ids(2, 9)


def as_version_1(path):
    """Rewrite a checkpoint as version 1 was: weights under the name of dense ones."""
    file = path / "model.safetensors"
    state = load_file(file)
    old = {
        name: t for name, t in state.items() if not (name.endswith(".weight") and t.numel() == 0)
    }
    ends = {".weight_codes": ".weight", ".weight_values": ".weight"}
    for new_end, old_end in ends.items():
        old = {
            n.removesuffix(new_end) + old_end if n.endswith(new_end) else n: t
            for n, t in old.items()
        }
    save_file(old, file, {"format": "pt"})
    described = json.loads((path / "config.json").read_text())["quantization_config"]
    change_config(path, quantization_config=described | {"version": 1})
    return path


@pytest.fixture(scope="module", params=[4, 8, 16])
def present(request, original, tmp_path_factory):
    config = QuantizationConfig(
        weight_bits=request.param, epochs=0, samples=1, sequence_length=16, batch_size=1
    )
    return quantize(original, config, TEXT, tmp_path_factory.mktemp("present") / "model")


@pytest.fixture
def old(present, tmp_path):
    return as_version_1(shutil.copytree(present, tmp_path / "old"))


def test_what_is_rewritten_is_what_is_written_now(present, old, tmp_path):
    before = contents(old)
    out = migrate(old, tmp_path / "new")
    assert contents(old) == before
    assert same_tensors(*(load_file(p / "model.safetensors") for p in (out, present)))
    assert json.loads((out / "config.json").read_text()) == json.loads(
        (present / "config.json").read_text()
    )
    assert contents(out).keys() == contents(present).keys()
    assert torch.equal(*(logits_of(load(p)[0], IDS) for p in (out, present)))


def test_an_old_version_is_refused_with_the_way_out(old):
    with pytest.raises(CheckpointError, match=r"has version 1 .*tesseral migrate OLD NEW"):
        load(old)


def test_weights_in_several_files_are_rewritten_file_by_file(old, tmp_path):
    state = load_file(old / "model.safetensors")
    (old / "model.safetensors").unlink()
    names = sorted(state)
    halves = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, part in halves.items():
        save_file({name: state[name] for name in part}, old / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: f for f, part in halves.items() for n in part}}
    (old / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load(migrate(old, tmp_path / "new"))[0] is not None


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (None, "is no checkpoint of this package's"),
        ({"quant_method": "gptq"}, "is no checkpoint of this package's"),
        ({"quant_method": "tesseral", "version": VERSION}, f"has version {VERSION} already"),
        ({"quant_method": "tesseral", "version": 0}, f"version 0; known are 1 and {VERSION}"),
        ({"quant_method": "tesseral", "version": 99}, f"version 99; known are 1 and {VERSION}"),
    ],
)
def test_what_needs_no_migration_is_refused(original, tmp_path, described, message):
    path = shutil.copytree(original, tmp_path / "model")
    change_config(path, quantization_config=described)
    with pytest.raises(CheckpointError, match=message):
        migrate(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damaged_weights_are_refused_and_leave_nothing(old, tmp_path):
    file = old / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the weights are damaged"):
        migrate(old, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_output_that_exists_is_kept(old, tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(OutputExistsError, match="exists; choose another output"):
        migrate(old, tmp_path / "new")

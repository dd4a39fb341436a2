"""A model is opened without its weights, and every block that is read is the original's."""

import json
import shutil

import pytest
import torch

from support.checkpoints import contents, save
from support.models import tiny_llama
from support.quantised import MODELS
from tesseral._errors import CheckpointError
from tesseral.llm import load
from tesseral.llm.layouts import blocks_of
from tesseral.llm.lazy_model import LazyModel

CPU = torch.device("cpu")


@pytest.fixture
def sharded(tmp_path):
    """A directory whose weights lie in several files."""
    path = save(tiny_llama(), tmp_path / "model")
    (path / "model.safetensors").unlink()
    tiny_llama().save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def same(first, second):
    """Say whether two modules hold the same parameters and buffers."""
    pairs = [(dict(m.named_parameters()) | dict(m.named_buffers())) for m in (first, second)]
    return pairs[0].keys() == pairs[1].keys() and all(
        torch.equal(tensor, pairs[1][name]) for name, tensor in pairs[0].items()
    )


def agree(path):
    lazy, (model, _) = LazyModel(path), load(path)
    for index, block in enumerate(blocks_of(model)):
        assert same(lazy.read_block(index, CPU, torch.float32), block)
    assert same(lazy.model, model)
    assert not any(p.requires_grad for p in lazy.model.parameters())
    assert not lazy.model.training


@pytest.mark.parametrize("name", MODELS)
def test_all_that_is_read_is_what_load_reads(name, tmp_path):
    agree(save(MODELS[name]("tesseral"), tmp_path / "model"))


def test_weights_may_lie_in_several_files(sharded):
    agree(sharded)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_outside_of_blocks_keeps_its_type_and_is_there_once(tmp_path, tied):
    model = tiny_llama(tie_word_embeddings=tied).to(torch.bfloat16)
    outside = LazyModel(save(model, tmp_path / "model")).outside()
    names = {"model.embed_tokens.weight", "model.norm.weight"}
    assert outside.keys() == names | (set() if tied else {"lm_head.weight"})
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in outside.items())
    assert {t.dtype for t in outside.values()} == {torch.bfloat16}


def test_only_the_block_asked_for_is_in_memory(original):
    lazy = LazyModel(original)
    lazy.read_block(1, CPU, torch.float64)
    devices = [{p.device.type for p in block.parameters()} for block in blocks_of(lazy.model)]
    assert devices == [{"meta"}, {"cpu"}]
    assert blocks_of(lazy.model)[1].mlp.up_proj.weight.dtype == torch.float64


def test_weights_that_are_changed_in_memory_stay_what_they_are_on_disk(original, tmp_path):
    path = shutil.copytree(original, tmp_path / "model")
    before, lazy = contents(path), LazyModel(path)
    with torch.no_grad():
        for parameter in (
            *lazy.read_block(0, CPU, torch.float32).parameters(),
            lazy.model.model.norm.weight,
        ):
            parameter.zero_()
    assert contents(path) == before


def first(path):
    return min(path.glob("model-0*"))


def rename(path, to):
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], to)
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def write_index(text):
    return lambda path: (path / "model.safetensors.index.json").write_text(text)


DAMAGE = {
    "a file is cut off": (
        lambda path: first(path).write_bytes(first(path).read_bytes()[:-1]),
        "the weights are damaged or cut off",
    ),
    "a file is missing": (lambda path: first(path).unlink(), "there is no file 'model-00001-of"),
    "the index names a file elsewhere": (
        lambda path: rename(path, "../model/model-00001-of-00006.safetensors"),
        "there is no file '../model/model",
    ),
    "the index leaves files out": (
        lambda path: rename(path, first(path).name),
        "the weights do not fit config.json; missing tensors: ",
    ),
    "the index is cut off": (write_index('{"weight_map": '), "index.json is damaged"),
    "the index has no map": (write_index("{}"), "index.json is damaged"),
    "the index is a list": (write_index("[]"), "index.json is damaged"),
    "the index maps to numbers": (write_index('{"weight_map": {"a": 1}}'), "there is no file 1"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_of_several_files_has_one_clear_line(sharded, name, said):
    change, message = DAMAGE[name]
    change(sharded)
    with pytest.raises(CheckpointError, match=message) as caught:
        LazyModel(sharded)
    assert str(sharded) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert said() == ""

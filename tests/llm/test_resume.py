"""What a quantisation keeps beside its output: whole blocks of the same work, nothing else."""

import errno
import os

import pytest
import torch
from safetensors import SafetensorError

from support.checkpoints import same_tensors
from tesseral.llm import resume
from tesseral.llm.resume import Progress, disk_errors, identity
from tesseral.quantization import QuantizationConfig

STATE = {"weight": torch.arange(6, dtype=torch.uint8), "scale": torch.rand(3, 1)}
WORK = {"text": "abc", "seed": 0, "files": {"config.json": [10, 20]}}


def test_a_saved_block_comes_back_to_a_later_run(tmp_path):
    Progress(tmp_path / "out", WORK, resume=True).save(1, STATE, {"loss": "0.5"})
    later = Progress(tmp_path / "out", WORK, resume=True)
    assert later.path == tmp_path / ".out.partial"
    assert later.block(0) is None
    assert same_tensors(later.block(1), STATE)
    assert later.facts(1) == {"loss": "0.5"}


@pytest.mark.parametrize(
    ("work", "keep"),
    [(WORK, False), (WORK | {"seed": 1}, True), (WORK | {"files": {}}, True)],
    ids=["not asked for", "another seed", "another model"],
)
def test_other_work_starts_anew(tmp_path, work, keep):
    Progress(tmp_path / "out", WORK, resume=True).save(0, STATE, {})
    assert Progress(tmp_path / "out", work, resume=keep).block(0) is None


@pytest.mark.parametrize("damage", ["", "{", '{"seed": 0}', "[]"])
def test_a_damaged_identity_starts_anew(tmp_path, damage):
    progress = Progress(tmp_path / "out", WORK, resume=True)
    progress.save(0, STATE, {})
    (progress.path / "identity.json").write_text(damage)
    assert Progress(tmp_path / "out", WORK, resume=True).block(0) is None


@pytest.mark.parametrize("kept", [0, 7, 40, -1])
def test_a_block_that_was_cut_off_is_not_there(tmp_path, kept):
    progress = Progress(tmp_path / "out", WORK, resume=True)
    progress.save(0, STATE, {})
    (file,) = progress.path.glob("block-*")
    file.write_bytes(file.read_bytes()[:kept])
    assert progress.block(0) is None


def test_a_block_that_cannot_be_saved_leaves_nothing(tmp_path, monkeypatch):
    progress = Progress(tmp_path / "out", WORK, resume=True)

    def fill_the_disk(state, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(resume, "save_file", fill_the_disk)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        progress.save(0, STATE, {})
    assert caught.value.errno == errno.ENOSPC
    assert [file.name for file in progress.path.iterdir()] == ["identity.json"]


def states(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_hidden_states_come_back_rounded_to_bfloat16_from_a_file(tmp_path):
    progress, expected = Progress(tmp_path / "out", WORK, resume=True), states(5, 3, 4)
    kept = progress.keep("hidden", 2, expected.split(2))
    later = Progress(tmp_path / "out", WORK, resume=True)
    for found in (kept, later.states("hidden", 2)):
        assert torch.equal(found, expected.to(torch.bfloat16))
    assert later.states("hidden", 1) is None
    assert later.states("received", 2) is None


@pytest.mark.parametrize("kept", [0, 7, 24, -1])
def test_hidden_states_that_were_cut_off_are_not_there(tmp_path, kept):
    progress = Progress(tmp_path / "out", WORK, resume=True)
    progress.keep("hidden", 0, [states(2, 3, 4)])
    (file,) = progress.path.glob("hidden-*")
    file.write_bytes(file.read_bytes()[:kept])
    assert progress.states("hidden", 0) is None


def test_batches_that_fail_leave_no_hidden_states(tmp_path):
    progress = Progress(tmp_path / "out", WORK, resume=True)

    def batches():
        yield states(2, 3, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        progress.keep("hidden", 0, batches())
    assert [file.name for file in progress.path.iterdir()] == ["identity.json"]


def test_a_block_is_done_once_all_that_enters_the_next_one_is_there(tmp_path):
    progress, kinds = Progress(tmp_path / "out", WORK, resume=True), ("hidden", "received")
    progress.keep("hidden", 0, [states(2, 3, 4)])
    assert progress.n_done(kinds) == 0
    progress.save(0, STATE, {})
    progress.keep("hidden", 1, [states(2, 3, 4)])
    assert (progress.n_done(kinds), progress.n_done(["hidden"])) == (0, 1)
    progress.keep("received", 1, [states(1, 3, 4)])
    assert progress.n_done(kinds) == 1
    progress.keep("hidden", 2, [states(2, 3, 4)])
    assert progress.n_done(["hidden"]) == 1
    progress.save(1, STATE, {})
    assert (progress.n_done(kinds), progress.n_done(["hidden"])) == (0, 2)


def test_what_entered_a_block_that_is_saved_is_forgotten(tmp_path):
    progress = Progress(tmp_path / "out", WORK, resume=True)
    for block in (0, 1):
        progress.keep("hidden", block, [states(2, 3, 4)])
    progress.save(0, STATE, {})
    assert progress.states("hidden", 0) is None
    assert progress.states("hidden", 1) is not None


def test_all_blocks_come_back_under_their_numbers(tmp_path):
    progress = Progress(tmp_path / "out", WORK, resume=True)
    progress.save(0, {"a": torch.zeros(1)}, {})
    progress.save(1, {"a": torch.ones(1)}, {})
    expected = {"model.layers.0.a": torch.zeros(1), "model.layers.1.a": torch.ones(1)}
    assert same_tensors(progress.blocks("model.layers"), expected)


def test_an_error_of_the_disk_says_where(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path)


def test_other_errors_of_safetensors_stay_what_they_are(tmp_path):
    with pytest.raises(SafetensorError, match="invalid dtype"), disk_errors(tmp_path):
        raise SafetensorError("invalid dtype")


def test_removing_leaves_nothing_and_can_be_repeated(tmp_path):
    progress = Progress(tmp_path / "out", WORK, resume=True)
    progress.save(0, STATE, {})
    progress.remove()
    progress.remove()
    assert list(tmp_path.iterdir()) == []


def test_identity_changes_with_model_text_and_configuration(tmp_path):
    model, config = tmp_path / "model", QuantizationConfig()
    model.mkdir()
    (model / "weights").write_bytes(b"1234")
    first = identity(model, config, "text")
    assert identity(model, config, "text") == first
    assert identity(model, config, "other") != first
    assert identity(model, QuantizationConfig(seed=1), "text") != first
    os.utime(model / "weights", ns=(1, 1))
    assert identity(model, config, "text") != first
    again = identity(model, config, "text")
    (model / "weights").write_bytes(b"12345")
    os.utime(model / "weights", ns=(1, 1))
    assert identity(model, config, "text") != again

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
    Progress(tmp_path / "out", WORK, resume=True).save(1, STATE)
    later = Progress(tmp_path / "out", WORK, resume=True)
    assert later.path == tmp_path / ".out.partial"
    assert later.load(0) is None
    assert same_tensors(later.load(1), STATE)


@pytest.mark.parametrize(
    ("work", "keep"),
    [(WORK, False), (WORK | {"seed": 1}, True), (WORK | {"files": {}}, True)],
    ids=["not asked for", "another seed", "another model"],
)
def test_other_work_starts_anew(tmp_path, work, keep):
    Progress(tmp_path / "out", WORK, resume=True).save(0, STATE)
    assert Progress(tmp_path / "out", work, resume=keep).load(0) is None


@pytest.mark.parametrize("damage", ["", "{", '{"seed": 0}', "[]"])
def test_a_damaged_identity_starts_anew(tmp_path, damage):
    progress = Progress(tmp_path / "out", WORK, resume=True)
    progress.save(0, STATE)
    (progress.path / "identity.json").write_text(damage)
    assert Progress(tmp_path / "out", WORK, resume=True).load(0) is None


@pytest.mark.parametrize("kept", [0, 7, 40, -1])
def test_a_block_that_was_cut_off_is_not_there(tmp_path, kept):
    progress = Progress(tmp_path / "out", WORK, resume=True)
    progress.save(0, STATE)
    (file,) = progress.path.glob("block-*")
    file.write_bytes(file.read_bytes()[:kept])
    assert progress.load(0) is None


def test_a_block_that_cannot_be_saved_leaves_nothing(tmp_path, monkeypatch):
    progress = Progress(tmp_path / "out", WORK, resume=True)

    def fill_the_disk(state, path):
        path.write_bytes(b"half")
        raise SafetensorError("Error: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(resume, "save_file", fill_the_disk)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        progress.save(0, STATE)
    assert caught.value.errno == errno.ENOSPC
    assert [file.name for file in progress.path.iterdir()] == ["identity.json"]


def test_other_errors_of_safetensors_stay_what_they_are(tmp_path):
    with pytest.raises(SafetensorError, match="invalid dtype"), disk_errors(tmp_path):
        raise SafetensorError("invalid dtype")


def test_removing_leaves_nothing_and_can_be_repeated(tmp_path):
    progress = Progress(tmp_path / "out", WORK, resume=True)
    progress.save(0, STATE)
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

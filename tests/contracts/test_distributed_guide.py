"""What the guide to several devices shows runs on two ranks, with a small model on the CPU."""

from pathlib import Path

from support.checkpoints import save
from support.models import DIVISIBLE, tiny_llama
from support.pages import pieces
from support.ranks import run_ranks

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "distributed.md").read_text("utf-8")
MODELS = [piece for piece in pieces(GUIDE, "text") if "path/to/model" in piece]
SMALLER = {
    "dist.init_process_group()": "",  # the ranks of the tests are a group already
    '"path/to/model", device="cuda"': 'f"{folder}/model"',
    "8192": "19",
    "1_048_576": "64",
}
GIVEN = """
prompt = "the cat"
from transformers import AutoTokenizer
inputs = AutoTokenizer.from_pretrained(f"{folder}/model")(prompt, return_tensors="pt")
"""
TOLD = """
import pathlib
pathlib.Path(f"{folder}/{rank}.txt").write_text(text)
"""


def test_models_are_divided_by_layers_and_by_context(tmp_path):
    save(tiny_llama(**DIVISIBLE), tmp_path / "model")
    by_layers, by_context = MODELS
    program = f"{by_layers}\n{GIVEN}\n{by_context}\n{TOLD}"
    for shown, smaller in SMALLER.items():
        assert shown in program
        program = program.replace(shown, smaller)
    codes, errors = run_ranks(program, 2, tmp_path)
    assert codes == [0, 0], "\n".join(errors)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert first

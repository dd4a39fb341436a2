from support.checkpoints import TEXT
from tesseral.llm import quantize
from tesseral.quantization import QuantizationConfig


def test_what_is_up_to_date_is_refused_in_one_line(refused, original, tmp_path):
    config = QuantizationConfig(transform="none", samples=1, sequence_length=16)
    model = quantize(original, config, TEXT, tmp_path / "model")
    line = refused("migrate", model, tmp_path / "out")
    assert "has version 2 already; nothing to migrate" in line


def test_what_is_not_ours_is_refused_in_one_line(refused, original, tmp_path):
    assert "is no checkpoint of this package's" in refused("migrate", original, tmp_path / "out")

"""EleutherAI's harness measures a saved checkpoint on a task built from local text."""

import json

import pytest

from support.checkpoints import TEXT
from tesseral.llm import load, perplexity, quantize
from tesseral.quantization import QuantizationConfig

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")

TASK = """
task: pages
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{page}}}}"
metric_list: [{{metric: byte_perplexity}}]
"""


@pytest.mark.filterwarnings("default")
def test_a_rolling_perplexity_of_a_page_is_near_ours(original, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    config = QuantizationConfig(epochs=0, samples=1, sequence_length=16)
    model, tokenizer = load(quantize(original, config, TEXT, tmp_path / "model"))
    page = TEXT[:120]
    file = tmp_path / "pages.jsonl"
    file.write_text(json.dumps({"page": page}))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "pages.yaml").write_text(TASK.format(file=file))
    found = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
        tasks=["pages"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )
    got = found["results"]["pages"]["byte_perplexity,none"]
    # a byte is a token; the harness predicts the first one too, from the token of the end
    assert got == pytest.approx(perplexity(model, tokenizer, page, 120), rel=0.1)

"""The demo makes models, a record and a report, all or nothing."""

from dataclasses import replace

import pytest

from support.checkpoints import contents
from tesseral._errors import MissingExtraError, OutputExistsError, ParameterError
from tesseral.datasets import load_embedded_lm
from tesseral.llm import generate, load
from tesseral.llm.evaluate import agreement
from tesseral.llm.footprint import footprint
from tesseral.report.demo.plan import DEMO_CONFIG, NAMES, embedded_plan
from tesseral.report.demo.run import run_demo

MODELS = {
    ("none", 3): "models/none",
    ("hadamard", 3): "models/hadamard",
    ("flatquant", 3): "models/flatquant",
    ("hadamard", 4): "models/hadamard-4",
    ("flatquant", 4): "models/flatquant-4",
}


def test_every_method_and_seed_is_a_model_that_loads(finished, plan):
    record, out, _ = finished
    assert {(m.method, m.seed): m.path for m in record.models[1:]} == MODELS
    for (transform, seed), path in MODELS.items():
        model, _ = load(out / path)
        settings = model.config.quantization_config.settings
        rounding = "nearest" if transform == "none" else plan.config.rounding
        assert settings == replace(plan.config, transform=transform, rounding=rounding, seed=seed)


def test_the_record_holds_what_those_models_give(finished, plan):
    record, out, _ = finished
    original, tokenizer = load(plan.model)
    for entry in record.models[1:]:
        model, _ = load(out / entry.path)
        options = (plan.test, plan.sequence_length)
        found = agreement(model, original, tokenizer, *options, max_sequences=plan.max_sequences)
        assert entry.agreement == found
        assert entry.footprint == footprint(out / entry.path, model)
        written = {"max_new_tokens": plan.new_tokens, "temperature": plan.temperature}
        assert entry.sample == generate(model, tokenizer, plan.prompt, **written)
        assert (len(entry.block_errors), len(entry.sites)) == (2, 8)
        assert entry.quantize_s > 0


def test_the_original_is_compared_with_itself(finished, plan):
    record, _, _ = finished
    original, found = record.models[0], record.models[1].agreement
    assert (original.method, original.path) == ("full", str(plan.model))
    assert original.agreement.perplexity == found.reference_perplexity
    assert original.agreement.ratio == original.agreement.top1 == 1
    assert original.agreement.kl_divergence == 0
    assert original.footprint == footprint(plan.model, load(plan.model)[0])


def test_each_stage_is_shown_from_start_to_end(finished, plan):
    _, _, steps = finished
    stages = 1 + 2 * len(plan.runs) + 3
    assert {step.n_stages for step in steps} == {stages}
    assert [step.stage for step in steps] == sorted(step.stage for step in steps)
    for stage in range(stages):
        done = [(step.done, step.total) for step in steps if step.stage == stage]
        assert done[0] == (0, 0)
        assert done[-1][0] == done[-1][1] > 0
    names = list(dict.fromkeys(step.name for step in steps))
    assert names[:3] == [
        "measuring Full precision",
        "quantising Round to nearest",
        "measuring Round to nearest",
    ]
    assert names[-4] == "measuring FlatQuant, seed 4"
    assert names[-1] == "regressing relations among nations"


def test_the_output_is_models_and_report_alone(finished):
    _, out, _ = finished
    assert {path.name for path in out.iterdir()} == {"models", "report.html"}
    assert {path.name for path in out.parent.iterdir()} == {"out"}


def test_an_existing_output_is_refused_before_any_work(plan, tmp_path):
    (tmp_path / "mine").write_text("precious")
    steps = []
    with pytest.raises(OutputExistsError, match="exists"):
        run_demo(plan, tmp_path, watch=steps.append)
    assert steps == []
    assert contents(tmp_path) == {"mine": b"precious"}


@pytest.mark.parametrize("stage", [2, 3, 6])
def test_an_interrupt_leaves_what_was_there(stage, plan, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")

    def interrupt(step):
        if step.stage == stage and step.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(plan, out, overwrite=True, watch=interrupt)
    assert contents(tmp_path) == {"out/mine": b"precious"}


def test_without_matplotlib_nothing_is_begun(plan, tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("tesseral.runtime.extras.importlib.import_module", missing)
    steps = []
    with pytest.raises(MissingExtraError, match="drawing charts needs matplotlib"):
        run_demo(plan, tmp_path / "out", watch=steps.append)
    assert steps == []


def test_rounding_is_run_once_and_the_others_for_every_seed(plan):
    assert plan.runs == list(MODELS)
    assert {method for method, _ in plan.runs} | {"full"} == set(NAMES)


def test_the_embedded_plan_counts_seeds_up_from_the_first():
    plan = embedded_plan(5, 3)
    assert plan.seeds == (5, 6, 7)
    assert plan.config == DEMO_CONFIG
    assert embedded_plan(5, 3, 128).config == replace(DEMO_CONFIG, samples=128)
    assert plan.model == load_embedded_lm()
    assert (plan.sequence_length, plan.max_sequences) == (512, 64)
    assert plan.calibration[:200] != plan.test[:200]


@pytest.mark.parametrize(("seed", "n_seeds"), [(-1, 1), (0, 0), (0, -2)])
def test_seeds_out_of_range_are_refused(seed, n_seeds):
    with pytest.raises(ParameterError, match=f"at least 1, got {seed} and {n_seeds}"):
        embedded_plan(seed, n_seeds)

"""What a context takes is said before it is taken."""

import pytest

from support.checkpoints import save
from support.models import tiny_gemma3, tiny_llama, tiny_mistral, tiny_mixtral, tiny_t5
from tesseral._errors import ParameterError, UnsupportedModelError
from tesseral.llm import plan_memory
from tesseral.llm.cooperative.plan import spread

BIG = 1 << 50


def test_layers_are_those_that_fit_beside_weights_and_workspace():
    model = tiny_llama("tesseral", num_hidden_layers=6, max_position_embeddings=1 << 20)
    whole = plan_memory(model, 100_000, BIG, BIG, chunk=1000)
    assert whole.layer_bytes == 100_000 * 2 * 2 * 8 * 4
    assert (whole.host_layers, whole.gpu_layers, whole.strip_bytes) == ((), 6, 0)
    for missing in range(1, 6):
        gpu = whole.gpu_needed - missing * whole.layer_bytes
        plan = plan_memory(model, 100_000, gpu, BIG, chunk=1000)
        assert plan.gpu_needed <= gpu < plan.gpu_needed + plan.layer_bytes
        assert len(plan.host_layers) in (missing, missing + 1)  # buffers may cost one more
        assert plan.host_needed == len(plan.host_layers) * whole.layer_bytes
        assert 0 < plan.strip_bytes <= whole.layer_bytes


def test_codes_take_less_by_their_scales_and_widths():
    model = tiny_llama("tesseral", head_dim=128)
    sizes = [plan_memory(model, 1000, BIG, BIG, kv_bits=b).layer_bytes for b in (16, 8, 4)]
    assert sizes == [1000 * 2 * 2 * n for n in (4 * 128, 128 + 4, 64 + 4)]


def test_layers_with_windows_keep_only_these_on_the_device():
    plan = plan_memory(tiny_gemma3("tesseral", num_hidden_layers=4), 100, BIG, BIG)
    assert plan.window_bytes > 0
    assert plan.n_layers == 4
    few = plan_memory(tiny_gemma3("tesseral", num_hidden_layers=4), 100, plan.gpu_needed - 1, BIG)
    assert set(few.host_layers) <= {1, 3}


def test_host_layers_are_spread():
    assert spread(list(range(8)), 0) == ()
    assert spread(list(range(8)), 2) == (2, 6)
    assert spread(list(range(8)), 8) == tuple(range(8))
    assert len(set(spread(list(range(32)), 20))) == 20


def test_a_budget_below_one_layer_is_refused_with_what_fits():
    model = tiny_llama("tesseral", num_hidden_layers=4, max_position_embeddings=1 << 20)
    needed = plan_memory(model, 100_000, BIG, BIG, chunk=1000)
    plan = plan_memory(model, 100_000, needed.gpu_needed - 3 * needed.layer_bytes, BIG, chunk=1000)
    assert plan.refusal is not None
    with pytest.raises(ParameterError, match=r"do not hold the model and one layer's .* 100000"):
        plan.require()
    with pytest.raises(ParameterError, match=r"What fits: \d+ tokens or all .* of \d bits\."):
        plan.require()
    fits = int(plan.refusal.split("What fits: ")[1].split()[0])
    assert plan_memory(model, fits, plan.gpu_bytes, BIG, chunk=1000).refusal is None
    assert plan_memory(model, fits + 1, plan.gpu_bytes, BIG, chunk=1000).refusal is not None


def test_too_little_memory_of_the_host_is_refused_with_what_fits():
    model = tiny_llama("tesseral", num_hidden_layers=4, max_position_embeddings=1 << 20)
    whole = plan_memory(model, 100_000, BIG, BIG, chunk=1000)
    gpu = whole.gpu_needed - whole.layer_bytes // 8
    plan = plan_memory(model, 100_000, gpu, whole.layer_bytes - 1, chunk=1000)
    with pytest.raises(ParameterError, match=r"1 of 4 layers would keep .* may be taken\. What"):
        plan.require()


def test_a_model_that_does_not_fit_is_told_so():
    with pytest.raises(ParameterError, match="The model alone takes too much"):
        plan_memory(tiny_llama(), 10, 1, BIG).require()


def test_a_directory_is_planned_for_without_reading_weights(tmp_path):
    model = tiny_llama("tesseral")
    path = save(model, tmp_path / "model")
    got, expected = plan_memory(path, 64, BIG, BIG), plan_memory(model, 64, BIG, BIG)
    assert got.layer_bytes == expected.layer_bytes
    assert got.weight_bytes == pytest.approx(expected.weight_bytes, rel=0.05)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"gpu_bytes": -1}, "gpu_bytes must be at least 1, got -1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"kv_bits": 5}, "kv_bits must be 16, 8 or 4, got 5"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, says):
    with pytest.raises(ParameterError, match=says):
        plan_memory(tiny_llama(), **{"context": 10, "gpu_bytes": BIG, "host_bytes": BIG} | wrong)


def test_models_without_ordinary_keys_are_refused():
    with pytest.raises(UnsupportedModelError, match="layers other than full and sliding"):
        plan_memory(tiny_t5(), 10, BIG, BIG)


def test_a_table_names_all_that_takes_memory():
    model = tiny_llama("tesseral", max_position_embeddings=1 << 20)
    whole = plan_memory(model, 1_000_000, BIG, BIG, chunk=1000)
    plan = plan_memory(model, 1_000_000, whole.gpu_needed - 1, BIG, chunk=1000)
    names = [row[0] for row in plan.table()[1]]
    assert names[-2:] == ["all", "may be taken"]
    assert "of 1 layers" in names


def test_windows_that_do_not_fit_are_refused_too():
    model = tiny_mistral("tesseral", sliding_window=16)
    whole = plan_memory(model, 100, BIG, BIG)
    assert whole.host_layers == ()
    assert plan_memory(model, 100, whole.gpu_needed, BIG).refusal is None
    refusal = plan_memory(model, 100, whole.gpu_needed - 1, BIG, chunk=whole.chunk).refusal
    assert refusal is not None
    assert "do not hold the model and its windows" in refusal


def test_activations_are_those_of_all_experts_that_a_token_chooses():
    sizes = {"hidden_size": 32, "intermediate_size": 256, "num_local_experts": 4}
    one, two = (
        plan_memory(tiny_mixtral("tesseral", **sizes, num_experts_per_tok=n), 4096, BIG, BIG)
        for n in (1, 2)
    )
    assert two.activation_bytes - one.activation_bytes >= 4096 * 256 * 4


def test_a_model_whose_keys_are_not_those_of_its_heads_is_refused():
    model = tiny_llama("tesseral")
    model.config.kv_lora_rank = 4
    with pytest.raises(UnsupportedModelError, match="layers other than full and sliding"):
        plan_memory(model, 100, BIG, BIG)

"""A context whose tokens are divided among ranks gives what it gives on one device."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import DynamicCache

from support.budget import assert_within_budget
from support.chunks import LENGTHS, MODELS, ORDER, TOKENS, fed, padding
from support.models import tiny_llama, token_ids
from support.ranks import run_ranks
from tesseral._errors import ParameterError, ShapeError, UnsupportedModelError
from tesseral.llm import CooperativeCache, QuantizedKVCache, SequenceCache, plan_memory
from tesseral.llm.cooperative import layers, sequence
from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.sequence import part_of_rank

PROGRAM = """
import numpy as np
from tesseral.llm import SequenceCache
from support.chunks import LENGTHS, MODELS, ORDER, TOKENS, fed, padding
found, context = {}, sum(LENGTHS)
with torch.inference_mode():
    for name, make in MODELS.items():
        model = make()
        cache = SequenceCache(model, context, batch=2)
        found[name] = fed(model, cache)
        assert cache.get_seq_length() == context
    model = MODELS["plain"]()
    cache = SequenceCache(model, context, batch=2)
    found["padded"] = fed(model, cache, seen=padding())
    found["bytes"] = torch.tensor(cache.nbytes)
    cache.reset()
    first = fed(model, cache, TOKENS[:, :41], (40, 1))
    cache.reorder_cache(ORDER)
    found["beams"] = torch.cat([first, fed(model, cache, TOKENS[ORDER][:, 41:], (22, 8))], 1)
    double = MODELS["plain"]().double()
    found["8 bits"] = fed(double, SequenceCache(double, context, batch=2, kv_bits=8))
    cache = SequenceCache(model, 60, batch=2, chunk=16)
    found["generated"] = model.generate(
        TOKENS[:, :40], past_key_values=cache, prefill_chunk_size=cache.chunk,
        max_new_tokens=20, do_sample=False,
    )
np.savez(f"{folder}/{rank}.npz", **{name: x.numpy() for name, x in found.items()})
"""


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    codes, errors = run_ranks(PROGRAM, request.param, folder, limit_s=60)
    assert codes == [0] * request.param, "\n".join(errors)
    return [np.load(folder / f"{rank}.npz") for rank in range(request.param)]


def cache_of(model):
    if hasattr(model.model.layers[0].self_attn, "kv_codec"):
        return QuantizedKVCache(model)
    return DynamicCache(config=model.config)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_one_device_within_the_budget_and_alike_on_all_ranks(ranks, name):
    model, double = MODELS[name](), MODELS[name]().double()
    with torch.inference_mode():
        peer = fed(model, cache_of(model)).numpy()
        oracle = fed(double, cache_of(double)).numpy()
    for rank in ranks:
        assert_within_budget(rank[name], oracle, peer, floor=1e-5)
        np.testing.assert_array_equal(rank[name], ranks[0][name])


def test_padding_is_hidden_on_every_rank(ranks):
    model = MODELS["plain"]()
    with torch.inference_mode():
        expected = fed(model, DynamicCache(), seen=padding()).numpy()
    for rank in ranks:
        np.testing.assert_allclose(rank["padded"][0, 13:], expected[0, 13:], atol=2e-5)
        np.testing.assert_allclose(rank["padded"][1], expected[1], atol=2e-5)


def test_beams_take_their_keys_along(ranks):
    model, cache = MODELS["plain"](), DynamicCache()
    with torch.inference_mode():
        first = fed(model, cache, TOKENS[:, :41], (40, 1))
        cache.reorder_cache(ORDER)
        expected = torch.cat([first, fed(model, cache, TOKENS[ORDER][:, 41:], (22, 8))], 1)
    for rank in ranks:
        np.testing.assert_allclose(rank["beams"], expected.numpy(), atol=2e-5)


def test_a_model_without_codec_may_keep_codes(ranks):
    model = MODELS["plain"]().double()
    plan = plan_memory(model, sum(LENGTHS), 1 << 40, batch=2, kv_bits=8)
    with torch.inference_mode():
        expected = fed(model, CooperativeCache(model, plan)).numpy()
    for rank in ranks:
        # sums are merged in float32, so now and then a number gets the next code
        assert np.abs(rank["8 bits"] - expected).mean() < 1e-5
        np.testing.assert_allclose(rank["8 bits"], expected, atol=5e-3)


def test_tokens_are_those_of_one_device_and_a_rank_holds_its_share(ranks):
    model = MODELS["plain"]()
    expected = model.generate(TOKENS[:, :40], max_new_tokens=20, do_sample=False)
    for rank in ranks:
        np.testing.assert_array_equal(rank["generated"], expected.numpy())
        share = -(-71 // len(ranks))
        assert rank["bytes"] == 2 * 2 * 2 * share * 2 * 8 * 4  # layers, sides, batch, heads...


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_new_tokens_are_divided_once_and_evenly(size):
    held, length = [0] * size, 0
    for new in (5, 1, 1, 64, 2, 1, 7, 3):
        parts = [part_of_rank(length, new, rank, size) for rank in range(size)]
        assert parts[0][0] == 0
        assert [end for _, end in parts[:-1]] == [start for start, _ in parts[1:]]
        assert parts[-1][1] == new
        held = [had + end - start for had, (start, end) in zip(held, parts, strict=True)]
        length += new
        assert max(held) - min(held) <= 1
        assert max(held) <= -(-length // size)


FAULT = """
from support.models import tiny_llama, token_ids
from tesseral.llm import SequenceCache
model = tiny_llama("tesseral")
with torch.inference_mode():
    cache = SequenceCache(model, 64)
    model(token_ids(1, 20), past_key_values=cache)
    if rank == 1:
        {what}
    for _ in range(5):
        model(token_ids(1, {more}), past_key_values=cache)
"""


def test_a_rank_that_dies_ends_the_others_with_its_name(tmp_path):
    program = FAULT.format(what="import os; os._exit(7)", more=1)
    codes, errors = run_ranks(program, 2, tmp_path, tail="", limit_s=10)
    assert codes[1] == 7
    assert codes[0] not in (0, None)
    assert "SequenceCache: rank 0 of 2 could not gather outputs; no word from rank 1" in errors[0]


def test_ranks_that_read_other_prompts_say_so(tmp_path):
    program = FAULT.format(what="pass", more="3 + rank")
    codes, errors = run_ranks(program, 2, tmp_path, tail="", limit_s=60)
    assert 0 not in codes
    for error in errors:
        assert (
            "SequenceCache: rank 1 has ((1, 2, 4, 8), 20), rank 0 has ((1, 2, 3, 8), 20)" in error
        )


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_beside_a_device_codes_become_numbers_some_at_a_time(monkeypatch):
    model, pieces = MODELS["codes"](), []
    original = sequence.dense
    monkeypatch.setattr(sequence, "Link", lambda device: Link(device, remote=True))
    monkeypatch.setattr(sequence, "DENSE_TOKENS", 16)
    monkeypatch.setattr(layers, "FEW_ROWS", 4)
    monkeypatch.setattr(
        sequence, "dense", lambda states, dtype: pieces.append(states[0]) or original(states, dtype)
    )
    with torch.inference_mode():
        got = fed(model, SequenceCache(model, sum(LENGTHS), batch=2)).numpy()
        expected = fed(model, QuantizedKVCache(model)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    # of the prompt's second chunk: 40 tokens before, then its own
    assert [piece.shape[2] for piece in pieces[2:6]] == [16, 16, 8, 23]


ON_DEVICES = """
import numpy as np
from tesseral.llm import SequenceCache
from support.chunks import LENGTHS, MODELS, TOKENS, fed, padding
found, context = {}, sum(LENGTHS)
with torch.inference_mode():
    for name in ("plain", "windows", "sinks"):
        model = MODELS[name]().to(device)
        found[name] = fed(model, SequenceCache(model, context, batch=2), TOKENS.to(device))
    model = MODELS["plain"]().to(device)
    cache = SequenceCache(model, context, batch=2, kv_bits=8)
    found["8 bits"] = fed(model, cache, TOKENS.to(device), seen=padding().to(device))
np.savez(f"{folder}/{rank}.npz", **{name: x.cpu().numpy() for name, x in found.items()})
"""


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_over_nccl_logits_are_those_of_one_process(tmp_path):
    codes, errors = run_ranks(ON_DEVICES, 2, tmp_path, backend="nccl", limit_s=60)
    assert codes == [0, 0], "\n".join(errors)
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    for name, got in first.items():
        np.testing.assert_array_equal(got, second[name])
        if name in MODELS:
            model = MODELS[name]().double()
            with torch.inference_mode():
                oracle = fed(model, cache_of(model)).numpy()
            np.testing.assert_allclose(got, oracle, atol=5e-3)


@pytest.mark.usefixtures("one_rank")
def test_what_cannot_be_kept_is_refused():
    model = tiny_llama("tesseral")
    for name in ("context", "batch", "chunk"):
        with pytest.raises(ParameterError, match=f"SequenceCache: {name} must be at least 1"):
            SequenceCache(model, **{"context": 9, name: 0})
    with pytest.raises(ParameterError, match="SequenceCache: kv_bits must be 16, 8 or 4, got 5"):
        SequenceCache(model, 9, kv_bits=5)
    with pytest.raises(ParameterError, match=r"SequenceCache: .* attn_implementation='eager'"):
        SequenceCache(tiny_llama(), 9)
    model.config.kv_lora_rank = 4
    with pytest.raises(UnsupportedModelError, match="SequenceCache: llama has layers other"):
        SequenceCache(model, 9)


@pytest.mark.usefixtures("one_rank")
def test_what_does_not_fit_is_refused():
    model = tiny_llama("tesseral")
    cache = SequenceCache(model, 9)
    with torch.inference_mode():
        with pytest.raises(ParameterError, match="10 tokens do not fit a cache for 9; make one"):
            model(token_ids(1, 10), past_key_values=cache)
        with pytest.raises(ShapeError, match=r"SequenceCache: new tokens .* = \(2, 2\)"):
            model(token_ids(2, 3), past_key_values=cache)
    with pytest.raises(ParameterError, match=r"crop\(-1\) is not possible"):
        cache.crop(-1)

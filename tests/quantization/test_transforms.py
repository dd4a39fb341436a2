"""Learned transforms are invertible at every parameter; frozen ones do the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.quantised import scramble
from tesseral.quantization.transforms.frozen import FrozenKronecker
from tesseral.quantization.transforms.hadamard import random_hadamard
from tesseral.quantization.transforms.kronecker import (
    MATRICES,
    CayleyMatrix,
    FreeMatrix,
    Kronecker,
    LearnableKronecker,
    cayley,
    evaluate,
)


def start(n, seed=0):
    return random_hadamard(n, torch.Generator().manual_seed(seed))


def rows(n, seed=0):
    return torch.randn(5, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(n=st.integers(1, 9), spread=st.sampled_from([0.0, 0.1, 1.0, 3.0]), seed=st.integers(0, 99))
def test_the_inverse_transpose_is_right_for_any_parameters(n, spread, seed):
    matrix, inverse_transpose = scramble(CayleyMatrix(start(n, seed)), spread, seed)()
    identity = torch.eye(n, dtype=torch.float64)
    size = matrix.abs().max() * inverse_transpose.abs().max()
    assert (matrix @ inverse_transpose.mT - identity).abs().max() < 1e-12 * (1 + size)


@given(n=st.integers(1, 9), seed=st.integers(0, 99))
def test_cayley_gives_a_rotation(n, seed):
    q = cayley(2 * torch.randn(n, n, dtype=torch.float64, generator=torch.manual_seed(seed)))
    assert torch.allclose(q @ q.mT, torch.eye(n, dtype=torch.float64), atol=1e-12)
    assert torch.linalg.det(q) == pytest.approx(1)


@pytest.mark.parametrize("size", [128, 160, 256])
def test_large_rotations_side_by_side_are_those_of_one_by_one(size):
    raw = torch.randn(4, size, size, dtype=torch.float64, generator=torch.manual_seed(0)) / size
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # with which MKL errs on some chips
    try:
        found = cayley(raw)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found, torch.stack([cayley(x) for x in raw]))


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("orthogonal", [True, False])
def test_a_matrix_begins_at_its_start_and_can_start_again(name, orthogonal):
    first, second = (start(12), start(12, seed=3)) if orthogonal else (rows(5), rows(5, seed=1))
    learnable = MATRICES[name](first)
    for expected in (first, second):
        matrix, inverse_transpose = learnable()
        assert torch.allclose(matrix, expected, atol=1e-12)
        assert torch.allclose(inverse_transpose, torch.linalg.inv(expected).mT, atol=1e-12)
        scramble(learnable)
        learnable.restart(second)


def test_a_free_matrix_in_float32_is_inverted_in_float64():
    hard = (rows(5) + 1e4 * torch.ones(5, 5)).float()  # of condition 1e5
    matrix, inverse_transpose = FreeMatrix(hard)()
    assert torch.equal(matrix, hard)
    assert torch.equal(inverse_transpose, torch.linalg.inv(hard.double()).mT.float())


@pytest.mark.parametrize("name", MATRICES)
def test_transforms_computed_together_are_those_computed_alone(name):
    sizes = [(3, 4), (4, None), (3, 3)]
    transforms = [
        scramble(
            LearnableKronecker([None if n is None else start(n, i) for n in pair], name), seed=i
        )
        for i, pair in enumerate(sizes)
    ]
    for transform, together in zip(transforms, evaluate(transforms), strict=True):
        alone = [(None, None) if m is None else m() for m in transform.matrices]
        for factor, inverse, pair in zip(
            together.factors, together.inverse_transposes, alone, strict=True
        ):
            if factor is None:
                assert inverse is None
            else:
                assert torch.allclose(factor, pair[0], atol=1e-14)
                assert torch.allclose(inverse, pair[1], atol=1e-14)


def test_the_stretch_multiplies_the_singular_values():
    learnable = CayleyMatrix(start(4))
    with torch.no_grad():
        learnable.log_scale.copy_(torch.tensor([2.0, 0.5, 1.0, 4.0]).log())
    matrix, _ = scramble_rotations(learnable)()
    expected = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    assert torch.allclose(torch.linalg.svdvals(matrix), expected)


def scramble_rotations(learnable):
    stretch = learnable.log_scale.detach().clone()
    scramble(learnable)
    with torch.no_grad():
        learnable.log_scale.copy_(stretch)
    return learnable


@pytest.mark.parametrize("name", MATRICES)
def test_gradients_of_matrix_and_inverse_are_those_of_finite_differences(name):
    learnable = scramble(MATRICES[name](start(3)))
    names = [name for name, _ in learnable.named_parameters()]

    def both(*values):
        return torch.func.functional_call(learnable, dict(zip(names, values, strict=True)), ())

    values = [p.detach().clone().requires_grad_() for p in learnable.parameters()]
    assert torch.autograd.gradcheck(both, values)


@pytest.mark.parametrize("present", [(True, True), (True, False), (False, True)], ids=str)
def test_factors_act_as_their_kronecker_product(present):
    sizes = (3, 4)
    starts = [start(n) if here else None for n, here in zip(sizes, present, strict=True)]
    transform = scramble(LearnableKronecker(starts))()
    dense, inverse = (
        torch.kron(
            *(torch.eye(n).double() if f is None else f for n, f in zip(sizes, fs, strict=True))
        )
        for fs in (transform.factors, transform.inverse_transposes)
    )
    x = rows(12)
    assert torch.allclose(transform.apply(x), x @ dense, atol=1e-12)
    assert torch.allclose(transform.apply_inverse_transpose(x), x @ inverse, atol=1e-12)
    assert torch.allclose(dense @ inverse.mT, torch.eye(12, dtype=torch.float64), atol=1e-12)


def test_transform_and_inverse_leave_a_product_unchanged():
    transform = scramble(LearnableKronecker([start(3), start(5)]))()
    x, weight = rows(15), rows(15, seed=1)
    product = transform.apply(x) @ transform.apply_inverse_transpose(weight).mT
    assert torch.allclose(product, x @ weight.mT, atol=1e-12)


def test_an_identity_is_not_even_copied():
    transform, x = Kronecker((None, None), (None, None)), rows(6)
    assert transform.apply(x) is x
    assert transform.apply_inverse_transpose(x) is x
    assert FrozenKronecker([None, None])(x) is x


def test_fixed_factors_are_inverted_in_float64():
    factor = rows(4)[:4].float()
    transform = Kronecker.from_factors([factor, None])
    expected = torch.linalg.inv(factor.double()).mT.float()
    assert torch.equal(transform.inverse_transposes[0], expected)
    assert transform.inverse_transposes[1] is None


def test_conversion_reaches_every_factor():
    transform = LearnableKronecker([start(2), None])().to(torch.float32)
    assert transform.factors[0].dtype == transform.inverse_transposes[0].dtype == torch.float32
    assert transform.factors[1] is None


@pytest.mark.parametrize("present", [(True, True), (True, False), (False, True)], ids=str)
def test_a_frozen_transform_does_what_the_learned_one_did(present):
    starts = [start(n) if here else None for n, here in zip((3, 4), present, strict=True)]
    learned = scramble(LearnableKronecker(starts))()
    frozen = FrozenKronecker([None if f is None else len(f) for f in starts], torch.float64)
    state = {f"factor{i}": f for i, f in enumerate(learned.factors) if f is not None}
    frozen.load_state_dict(state)
    x = rows(12)
    assert torch.allclose(frozen(x), learned.apply(x), atol=1e-14)


def test_a_frozen_transform_computes_in_its_own_type():
    assert FrozenKronecker([2, 3])(rows(6).to(torch.bfloat16)).dtype == torch.float32
    assert list(FrozenKronecker([2, None]).state_dict()) == ["factor0"]

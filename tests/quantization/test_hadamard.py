"""Hadamard matrices have entries of +-1 and orthogonal rows; random ones exist for every size."""

import pytest
import torch

from tesseral.quantization.transforms.hadamard import hadamard, random_hadamard, random_orthogonal

ORDERS = [1, 2, *range(4, 253, 4)]
UNKNOWN = {52, 92, 100, 116, 156, 172, 184, 188, 232, 236, 244}
"""Multiples of four up to 252 that need a prime power, or more than Sylvester and Paley."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [n for n in ORDERS if n not in UNKNOWN])
def test_a_hadamard_matrix_has_orthogonal_rows_of_signs(n):
    h = hadamard(n)
    assert h.dtype == torch.float64
    assert h.shape == (n, n)
    assert (h.abs() == 1).all()
    assert torch.equal(h @ h.mT, n * torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("n", range(1, 131))
def test_a_random_hadamard_matrix_is_orthogonal_for_every_size(n):
    q = random_hadamard(n, generator())
    assert q.dtype == torch.float64
    assert (q @ q.mT - torch.eye(n)).abs().max() < 1e-12


@pytest.mark.parametrize("n", [n for n in ORDERS if n not in UNKNOWN and n < 140])
def test_all_entries_have_one_magnitude_where_a_hadamard_matrix_is_known(n):
    q = random_hadamard(n, generator())
    assert (q.abs() * n**0.5 - 1).abs().max() < 1e-12


@pytest.mark.parametrize("n", [3, 4, 12, 64])
def test_the_seed_fixes_a_random_matrix(n):
    for draw in (random_hadamard, random_orthogonal):
        assert torch.equal(draw(n, generator(1)), draw(n, generator(1)))
        assert not torch.equal(draw(n, generator(1)), draw(n, generator(2)))


def test_a_random_orthogonal_matrix_favours_no_sign():
    # without the signs of R's diagonal, QR gives a first row of one sign only
    corners = [random_orthogonal(3, generator(seed))[0, 0] for seed in range(64)]
    positive = sum(corner > 0 for corner in corners)
    assert 16 < positive < 48

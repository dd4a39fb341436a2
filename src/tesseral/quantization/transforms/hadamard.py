"""Orthogonal matrices with flat entries, for any size.

A Hadamard matrix (entries +-1, orthogonal rows) exists in closed form for powers of two
(Sylvester 1867), for ``q + 1`` with a prime ``q = 3 mod 4`` and for ``2 (q + 1)`` with a
prime ``q = 1 mod 4`` (Paley 1933), and for products of these. For other sizes the odd part
becomes a random orthogonal matrix.
"""

from math import isqrt

import torch
from torch import Tensor


def random_hadamard(n: int, generator: torch.Generator) -> Tensor:
    """Return an orthogonal (n, n) float64 matrix ``D H / sqrt(n)`` with random signs ``D``.

    ``H`` is a Hadamard matrix of order ``n`` if one is known here; otherwise the product of
    the largest one that divides ``n`` with a random orthogonal matrix of the order left.
    """
    order = next(d for d in range(n, 0, -1) if n % d == 0 and _is_known(d))
    matrix = hadamard(order) / order**0.5
    if order < n:
        matrix = torch.kron(random_orthogonal(n // order, generator), matrix)
    signs = torch.randint(0, 2, (n, 1), generator=generator, dtype=torch.float64) * 2 - 1
    flat: Tensor = signs * matrix
    return flat


def random_orthogonal(n: int, generator: torch.Generator) -> Tensor:
    """Return an (n, n) float64 orthogonal matrix, uniform over the group."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    orthogonal: Tensor = (q * r.diagonal().sign()).contiguous()
    return orthogonal


def hadamard(n: int) -> Tensor:
    """Return a Hadamard matrix of order ``n`` in float64: entries +-1, ``H H^T = n I``."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if _is_prime(n - 1) and n % 4 == 0:
        return _paley_one(n - 1)
    if n % 4 == 0 and _is_prime(n // 2 - 1) and (n // 2 - 1) % 4 == 1:
        return _paley_two(n // 2 - 1)
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    return torch.kron(hadamard(n // 2), pair)


def _is_known(n: int) -> bool:
    if n in (1, 2):
        return True
    if n % 4:
        return False
    half = n // 2 - 1
    return _is_prime(n - 1) or (_is_prime(half) and half % 4 == 1) or _is_known(n // 2)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, isqrt(n) + 1))


def _jacobsthal(q: int) -> Tensor:
    """Return the (q, q) matrix of quadratic characters of ``i - j``."""
    squares = {x * x % q for x in range(1, q)}
    character = [0.0] + [1.0 if x in squares else -1.0 for x in range(1, q)]
    rows = [[character[(i - j) % q] for j in range(q)] for i in range(q)]
    return torch.tensor(rows, dtype=torch.float64)


def _paley_one(q: int) -> Tensor:
    skew = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = _jacobsthal(q)
    return skew + torch.eye(q + 1, dtype=torch.float64)


def _paley_two(q: int) -> Tensor:
    conference = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    conference[0, 1:] = conference[1:, 0] = 1
    conference[1:, 1:] = _jacobsthal(q)
    off_diagonal = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    eye = torch.eye(q + 1, dtype=torch.float64)
    return torch.kron(conference, off_diagonal) + torch.kron(eye, diagonal)

"""Closed-form transforms to start from: what second moments say before anything is learned.

Rounding a flat row ``x P`` adds noise of a power proportional to ``|x P|^2``, which the
gradients ``g`` at ``x`` carry on as ``|g P^-T|^2``; what rounding the weights costs has the
same form. With ``S`` the second moments of x, ``M`` those of g and ``G = P P^T`` the cost is

    tr(G S) tr(G^-1 M),

least at the geometric mean ``G = S^-1 # M``, for which ``G S G = M``. Every ``P = G^(1/2) R``
with orthogonal ``R`` has that ``G``; a Hadamard ``R`` makes rows flat. Of a Kronecker product
one factor after the other is set to its optimum, and in between the scale of channels is.
"""

from functools import reduce

import torch
from torch import Tensor

from tesseral.quantization.block import SimulatedBlock
from tesseral.quantization.calibration.statistics import Moments, wake_gradients
from tesseral.quantization.placement import CODEC
from tesseral.quantization.simulate import SimulatedCodec, SimulatedInput
from tesseral.quantization.transforms.kronecker import LearnableKronecker

_ROUNDS = 3  # of scale and factors in turn
_SWEEPS = 3  # over the factors, for a given scale
_ITERATIONS = 10  # on the scale, for given factors
_LOADING = 1e-3  # of the mean diagonal, added to moments


@torch.no_grad()
def start_from_moments(simulated: SimulatedBlock, moments: dict[str, Moments]) -> None:
    """Set the learned transforms and scales of a block to where its moments say.

    Parameters
    ----------
    simulated : SimulatedBlock
        Its transforms are at their orthogonal starts, which stay as the rotations ``R``. Those
        that are not learned stay as they are.
    moments : dict of str to Moments
        Of every input site, and of the keys under the codec's name. Without those of a site,
        whose readers may all be experts that no token chose, it starts as it is.
    """
    parts: dict[str, SimulatedInput | SimulatedCodec] = {
        **simulated.inputs,
        CODEC: simulated.codec,
    }
    for name, part in parts.items():
        if name in moments and isinstance(part.transform, LearnableKronecker):
            log_scale = part.log_scale if isinstance(part, SimulatedInput) else None
            _start(part.transform, log_scale, moments[name])
    simulated.refresh()


def _start(transform: LearnableKronecker, log_scale: Tensor | None, moments: Moments) -> None:
    rotations = [m()[0] for m in transform.matrices if m is not None]
    moments = Moments(rows=_loaded(moments.rows), gradients=_loaded(moments.gradients))
    grams = balanced_grams(moments, [len(r) for r in rotations])
    if log_scale is not None:
        scale = torch.ones_like(moments.rows[0])
        for _ in range(_ROUNDS):
            scale = balanced_scale(moments, grams, scale)
            grams = balanced_grams(moments.scaled(scale), [len(g) for g in grams])
        log_scale.copy_(scale.log())
    transform.restart([power(g, 0.5) @ r.double() for g, r in zip(grams, rotations, strict=True)])


def balanced_grams(moments: Moments, sizes: list[int]) -> list[Tensor]:
    """Return the ``G_j``, of determinant one, whose Kronecker product has a small cost.

    Each in turn becomes the optimum for given others, so the cost never rises.

    Parameters
    ----------
    moments : Moments
        Of positive definite matrices.
    sizes : list of int
        Sizes of one or two factors.

    Returns
    -------
    list of (n_j, n_j) float64 tensor
    """
    dtype = moments.rows.dtype
    grams = [torch.eye(n, dtype=torch.float64, device=moments.rows.device) for n in sizes]
    if len(sizes) == 1:
        return [geometric_mean(moments.rows, moments.gradients)]
    rows, gradients = (m.reshape(*sizes, *sizes) for m in (moments.rows, moments.gradients))
    for _ in range(_SWEEPS):
        for j, subscripts in enumerate(("iajb,ab->ij", "iajb,ij->ab")):
            other = grams[1 - j]
            grams[j] = geometric_mean(
                torch.einsum(subscripts, rows, other.to(dtype)),
                torch.einsum(subscripts, gradients, torch.linalg.inv(other).to(dtype)),
            )
    return grams


def balanced_scale(moments: Moments, grams: list[Tensor], start: Tensor) -> Tensor:
    """Return the scale ``c`` of channels that makes the cost small for given factors.

    With ``u = c`` the cost is ``(u^T (S * G) u) ((1/u)^T (M * G^-1) (1/u))``, elementwise
    products inside. Its logarithm is lowered by L-BFGS in ``log c``.

    Returns
    -------
    (n,) tensor
        Positive, of geometric mean one.
    """
    dtype = moments.rows.dtype
    inverses = [torch.linalg.inv(g).to(dtype) for g in grams]
    rows = moments.rows * reduce(torch.kron, [g.to(dtype) for g in grams])
    gradients = moments.gradients * reduce(torch.kron, inverses)
    logs = start.log().requires_grad_()
    optimizer = torch.optim.LBFGS([logs], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        up, down = logs.exp(), (-logs).exp()
        loss: Tensor = (up @ rows @ up).log() + (down @ gradients @ down).log()
        loss.backward()
        return loss

    with torch.enable_grad():
        wake_gradients(start.device)
        optimizer.step(cost)
    logs = logs.detach()
    return (logs - logs.mean()).exp()


def geometric_mean(rows: Tensor, gradients: Tensor) -> Tensor:
    """Return the ``G`` of determinant one with ``G S G`` proportional to ``M``.

    ``S^(-1/2) (S^(1/2) M S^(1/2))^(1/2) S^(-1/2)``, up to a factor (Pusz and Woronowicz 1975).

    Parameters
    ----------
    rows, gradients : (n, n) tensor
        ``S`` and ``M``, symmetric and positive definite.

    Returns
    -------
    (n, n) float64 tensor
    """
    rows, gradients = rows.double(), gradients.double()
    root, inverse = power(rows, 0.5), power(rows, -0.5)
    gram = inverse @ power(root @ gradients @ root, 0.5) @ inverse
    return gram / torch.exp(torch.linalg.slogdet(gram).logabsdet / len(gram))


def power(matrix: Tensor, exponent: float) -> Tensor:
    """Return a power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    # the least eigenvalues of a sum that is almost singular may come out negative
    values = values.clamp_min(values[-1] * 1e-14)
    raised: Tensor = (vectors * values**exponent) @ vectors.mT
    return raised


def _loaded(moment: Tensor) -> Tensor:
    """Return a moment of mean diagonal one, made safely definite."""
    size = moment.diagonal().mean()
    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return moment / size.clamp_min(torch.finfo(moment.dtype).tiny) + _LOADING * eye

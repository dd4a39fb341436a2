"""Alternating maximisation of the likelihood, one damped Newton step of one block at a time."""

from dataclasses import dataclass, replace
from math import inf

from scipy.optimize import minimize_scalar

from tesseral.core.stopping import Progress, Reason, Result, StoppingRule
from tesseral.regress._blocks import block_step, moved
from tesseral.regress._evaluate import Block, Evaluation, evaluate
from tesseral.regress._problem import Point, Problem

_HALVINGS = 25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """Where an iteration ended.

    Attributes
    ----------
    point : Point
    found : Evaluation
        The data seen from there.
    result : Result
        Its history holds the log-likelihood, less penalties.
    escaped : bool
        Whether it was stopped because linear predictors grew beyond the limit.
    """

    point: Point
    found: Evaluation
    result: Result
    escaped: bool = False


def maximise(problem: Problem, start: Point, rule: StoppingRule, *, limit: float = inf) -> Fit:
    """Climb from ``start``; the objective never falls.

    Parameters
    ----------
    problem, start
        What to fit, and where to begin.
    rule : StoppingRule
        Judges the log-likelihood after each round through all blocks.
    limit : float
        Stop as soon as an absolute linear predictor is beyond it.
    """
    blocks: list[Block] = [group[0] for group in problem.groups]
    blocks.append("core")
    point = _allowed(problem, start)
    point, found = _redispersed(problem, point, evaluate(problem, point, blocks[0]), blocks[0])
    progress = rule.start(log_likelihood(problem, point, found))
    while not progress.done:
        for position, block in enumerate(blocks):
            following = blocks[(position + 1) % len(blocks)]
            point, found = _climb(problem, point, found, block, following)
        point, found = _redispersed(problem, point, found, blocks[0])
        progress = progress.update(log_likelihood(problem, point, found))
        if found.largest > limit:
            return _ended(point, found, progress, escaped=True)
    return _ended(point, found, progress)


def log_likelihood(problem: Problem, point: Point, found: Evaluation) -> float:
    """Return the log-likelihood, less penalties, from the objective."""
    return problem.family.total(found.objective, problem.seen, point.dispersion)


def _ended(point: Point, found: Evaluation, progress: Progress, *, escaped: bool = False) -> Fit:
    if not progress.done:  # it ran away before any rule was met
        progress = replace(progress, reason=Reason.NOT_FINITE)
    return Fit(point=point, found=found, result=progress.result, escaped=escaped)


def _climb(
    problem: Problem, point: Point, found: Evaluation, block: Block, following: Block
) -> tuple[Point, Evaluation]:
    """Do one Newton step of ``block``, halved until the objective does not fall."""
    step = block_step(problem, point, block, found)
    for halving in range(_HALVINGS):
        candidate = _allowed_after(problem, moved(problem, point, block, step * 0.5**halving))
        there = evaluate(problem, candidate, following)
        if there.objective >= found.objective:
            return candidate, there
    return point, evaluate(problem, point, following)


def _allowed(problem: Problem, point: Point) -> Point:
    """Return a start inside the bound on linear predictors, with some room to move."""
    bound = problem.penalty.max_theta
    if bound is None:
        return point
    largest = evaluate(problem, point, None).largest
    return point.scaled(min(1.0, 0.9 * bound / largest)) if largest > 0 else point


def _allowed_after(problem: Problem, point: Point) -> Point:
    """Shrink a point into the bound if that is how the bound is kept."""
    if not problem.penalty.rescales:
        return point
    bound = problem.penalty.max_theta
    assert bound is not None
    largest = evaluate(problem, point, None).largest
    return point.scaled(bound / largest) if largest > bound else point


def _redispersed(
    problem: Problem, point: Point, found: Evaluation, block: Block
) -> tuple[Point, Evaluation]:
    """Fit the dispersion of the negative binomial family, whose kernels depend on it."""
    if problem.family.name != "negative_binomial" or problem.dispersion is not None:
        return point, found

    def loss(log_dispersion: float) -> float:
        there = replace(point, dispersion=float(10.0**log_dispersion))
        return -log_likelihood(problem, there, evaluate(problem, there, None))

    best = minimize_scalar(loss, bounds=(-5, 3), method="bounded", options={"xatol": 1e-4})
    better = replace(point, dispersion=float(10.0**best.x))
    if -best.fun <= log_likelihood(problem, point, found):
        return point, found
    return better, evaluate(problem, better, block)

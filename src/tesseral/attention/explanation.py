"""How a call would run, found without running it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tesseral.attention.plan import TilePlan
from tesseral.attention.problem import AttentionProblem
from tesseral.attention.registry import BACKENDS
from tesseral.attention.tiling import BlockCount
from tesseral.attention.tiling_mask import TilingMask
from tesseral.runtime.registry import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """How a call would run. Printable.

    Attributes
    ----------
    problem : AttentionProblem
        The call.
    verdicts : mapping of str to Verdict
        What each backend says to it, best first.
    backend : str
        The one that would run it.
    plan : TilePlan
        The tiles it would use.
    blocks : BlockCount
        Of the grid of those tiles: full (no mask is read), partial, empty (skipped), as
        causality and window leave them.
    """

    problem: AttentionProblem
    verdicts: Mapping[str, Verdict]
    backend: str
    plan: TilePlan
    blocks: BlockCount

    def __str__(self) -> str:
        verdicts = [
            f"  {name}: {'yes' if verdict.ok else verdict.reason}"
            for name, verdict in self.verdicts.items()
        ]
        return "\n".join(
            [str(self.problem), *verdicts, f"{self.backend}: {self.plan}", f"  {self.blocks}"]
        )


def explain_problem(
    problem: AttentionProblem, backend: str | None, lengths: Iterable[tuple[int, int]]
) -> Explanation:
    """Return how a checked call would run.

    Parameters
    ----------
    problem : AttentionProblem
        The call.
    backend : str, optional
        Backend to use or fail; as of :func:`tesseral.attention.attention`.
    lengths : iterable of (int, int)
        Queries and keys of every sequence whose blocks are to be counted.

    Raises
    ------
    BackendError
        If the backend asked for is unknown or cannot run the call.
    """
    chosen = BACKENDS.choose(problem, backend)
    plan = chosen.plan(problem)
    counts = [
        TilingMask(q_len, kv_len, is_causal=problem.causal, window=problem.window).count(
            max(1, plan.q_tile), max(1, plan.k_tile)
        )
        for q_len, kv_len in lengths
    ]
    return Explanation(
        problem=problem,
        verdicts=BACKENDS.explain(problem),
        backend=chosen.name,
        plan=plan,
        blocks=BlockCount(
            full=sum(count.full for count in counts),
            partial=sum(count.partial for count in counts),
            empty=sum(count.empty for count in counts),
        ),
    )

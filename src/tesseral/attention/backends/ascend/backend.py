"""Attention on Ascend NPUs."""

from tesseral.attention.backends.ascend.chip import ASCEND_910B2
from tesseral.attention.backends.ascend.device import cube_cores, ready
from tesseral.attention.backends.ascend.plan import AscendPlan, plan_rounds
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.core._arrays import Array
from tesseral.runtime.registry import YES, Verdict

MAX_DIM = 256
"""Largest head dimension: products of this width fill L0C."""


class AscendBackend:
    """Exact attention on Ascend NPUs through torch_npu and triton-ascend.

    Scores, weights and sums are float32 and the output is rounded once; weights are rounded to
    the type of the values for their product. Deterministic. Lowered by triton-ascend's front end
    and run in Triton's interpreter; never yet run on an NPU.
    """

    name = "ascend"

    def supports(self, problem: AttentionProblem) -> Verdict:
        """Accept float16, bfloat16 and float32 with causality, windows and grouped heads."""
        verdict = ready(problem.device)
        if not verdict.ok:
            return verdict
        return next((Verdict(False, reason) for reason in _refusals(problem)), YES)

    def plan(self, problem: AttentionProblem) -> AscendPlan:
        """Return the tiles that :meth:`forward` takes by default."""
        return plan_rounds(problem, ASCEND_910B2, cube_cores(problem.device))

    def forward(
        self, problem: AttentionProblem, arrays: AttentionArrays, plan: AscendPlan | None = None
    ) -> tuple[Array, Array]:
        """Return output (batch, q_heads, q_len, value_dim) and lse (batch, q_heads, q_len)."""
        from tesseral.attention.backends.ascend.launch import run_dense

        return run_dense(problem, arrays, plan or self.plan(problem))


def _refusals(problem: AttentionProblem) -> list[str]:
    """Return why a problem cannot run, whatever the device."""
    reasons = {
        "computes in float32, not in float64": problem.dtype == "float64",
        "Triton's interpreter multiplies bfloat16 wrongly": (
            problem.dtype == "bfloat16" and problem.device == "cpu"
        ),
        f"takes head dimensions up to {MAX_DIM}": max(problem.head_dim, problem.value_dim)
        > MAX_DIM,
        "reads dense keys and values, no codes": (
            (problem.key_format, problem.value_format) != ("dense", "dense")
        ),
        "masks by causality and windows, not by a dense mask": problem.mask != "none",
        "has no softcap": problem.softcap is not None,
        "has no linear bias": problem.alibi,
        "has no sinks": problem.sinks,
    }
    return [reason for reason, holds in reasons.items() if holds]

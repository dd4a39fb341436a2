"""What the demo does: which model, which texts, which settings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tesseral._errors import ParameterError
from tesseral.datasets import load_books_excerpt, load_embedded_lm
from tesseral.quantization.config import QuantizationConfig
from tesseral.report.demo.speed import Speeds, measure_speeds

DEMO_CONFIG = QuantizationConfig(
    epochs=2,
    samples=64,
    sequence_length=512,
    batch_size=2,
    learning_rate=2e-2,
    clip_learning_rate=1e-1,
)
"""Short: with 128 samples FlatQuant alone took 231 s on two cores with AVX2 (AMD Zen 3)."""

NAMES = {
    "full": "Full precision",
    "none": "Round to nearest",
    "hadamard": "Hadamard",
    "flatquant": "FlatQuant",
}
"""Every method that is compared, in words: the original, then the transforms."""

TRANSFORMED = ("hadamard", "flatquant")
"""The methods that transform before they round; both draw from the seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """Everything that decides what the demo measures.

    Attributes
    ----------
    model : Path
        Directory of the original model.
    calibration, test : str
        Text to learn from, and text to measure on.
    config : QuantizationConfig
        Settings of all methods; transform and seed vary.
    seeds : tuple of int
        Each method that depends on the seed is repeated for each.
    sequence_length, max_sequences : int
        How much of the test text is measured.
    prompt : str
        What each model continues.
    new_tokens : int
        How far.
    temperature : float
        At which temperature.
    speeds : callable
        Times attention and layers beside torch's.
    """

    model: Path
    calibration: str
    test: str
    config: QuantizationConfig = DEMO_CONFIG
    seeds: tuple[int, ...] = (0,)
    sequence_length: int = 512
    max_sequences: int = 64
    prompt: str = "The old man opened the door and"
    new_tokens: int = 60
    temperature: float = 0.7
    speeds: Callable[[], Speeds] = measure_speeds

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Every transform and seed to quantise with, the plainest first."""
        first, *others = self.seeds
        # rounding alone draws nothing at random: one seed says it all
        return [
            ("none", first),
            *((transform, seed) for seed in (first, *others) for transform in TRANSFORMED),
        ]


def embedded_plan(seed: int = 0, n_seeds: int = 1, samples: int = DEMO_CONFIG.samples) -> DemoPlan:
    """Return the plan for the model and texts in the package.

    Parameters
    ----------
    seed : int
        The first seed.
    n_seeds : int
        How many seeds to use, counted up from the first.
    samples : int
        Calibration sequences: more take longer and lose less.

    Raises
    ------
    ParameterError
        If one of them is out of range.
    """
    if seed < 0 or n_seeds < 1:
        raise ParameterError(
            f"demo: seed must be at least 0 and seeds at least 1, got {seed} and {n_seeds}."
        )
    return DemoPlan(
        model=load_embedded_lm(),
        calibration=load_books_excerpt("calibration"),
        test=load_books_excerpt("test"),
        config=replace(DEMO_CONFIG, samples=samples),
        seeds=tuple(range(seed, seed + n_seeds)),
    )

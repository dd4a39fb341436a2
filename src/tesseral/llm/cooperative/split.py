"""How many tokens of a host's layer the CPU reads in a step, and how many pass to the device."""

from dataclasses import dataclass

STEPS = 6
"""Steps that are watched; the number then stays, so that equal calls give equal results."""

_FIRST = 0.2  # of the tokens, before anything was measured
_MARGIN = 0.96  # a copy that comes late costs more than one that was left to the CPU
_ROUND = 64


@dataclass(slots=True)
class Split:
    """Shares the tokens of a host's layer between the CPU and the link to the device.

    The CPU reads its part from the host's memory while the link brings the other part of the next
    layer; both take equally long when the link has ``n * r_link / (r_cpu + r_link)`` of ``n``
    tokens, and more while the device computes the rest of the model.

    Attributes
    ----------
    most : int
        Tokens that a buffer holds.
    fixed : int or None
        Tokens that pass; ``None`` to find out.
    """

    most: int
    fixed: int | None = None
    _steps: int = 0
    _tokens: int | None = None
    _idle_s: float = float("inf")

    def tokens(self, length: int) -> int:
        """Return how many of ``length`` tokens pass to the device."""
        if self.fixed is not None:
            return min(self.fixed, self.most, length)
        if self._tokens is None:
            self._tokens = int(_FIRST * length)
        return min(self._tokens // _ROUND * _ROUND, self.most, length)

    @property
    def watches(self) -> bool:
        """Whether measurements are still wanted."""
        return self.fixed is None and self._steps < STEPS

    def learn(
        self, *, length: int, token_bytes: int, layers: int, step_s: float, cpu_s: float,
        link_bytes: int, link_s: float,
    ) -> None:  # fmt: skip
        """Take note of a step: how long the CPU attended in it, and what the link moved.

        Parameters
        ----------
        length, token_bytes, layers : int
            Tokens of a sequence, bytes of each in a layer, and layers on the host.
        step_s, cpu_s : float
            Seconds of the step, and of the CPU's attention in it.
        link_bytes, link_s
            What was copied, and how long that took.
        """
        self._steps += 1
        read = length - self.tokens(length)
        if min(cpu_s, link_s, read, link_bytes) <= 0:
            return
        cpu_rate = read * token_bytes * layers / cpu_s
        link_rate = link_bytes / link_s
        self._idle_s = min(self._idle_s, max(0.0, step_s - cpu_s))
        wanted = length / cpu_rate + self._idle_s / (layers * token_bytes)
        self._tokens = int(min(length, _MARGIN * wanted / (1 / cpu_rate + 1 / link_rate)))

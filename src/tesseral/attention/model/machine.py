"""Machines as data: rates of one core and of what cores share, each with its source."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tesseral._errors import ParameterError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Machine:
    """Cores with a matrix unit, a vector unit and a near memory; a cache and a far memory.

    Attributes
    ----------
    name : str
        Of the machine.
    cores : int
        Multiprocessors, or cube cores with their vector cores.
    clock_hz : float
        Cycles in a second, which the next are counted by.
    matrix_flops : float
        Operations of a core's matrix unit, two for a multiply-add, in float16.
    vector_lanes, exp_lanes : float
        Instructions, each lane counted, of a core's vector unit; exponentials among them.
    near_bytes : float
        Bytes that a core's near memory moves; 0 = not modelled.
    l2_bytes : float
        Bytes that the cache moves, shared by all cores.
    far_bytes_per_s : float
        Bytes that the far memory moves.
    handover_s : float
        Time from the end of one unit's work to the start of another's that needs it.
    latency_s, launch_s : float
        Time until the first bytes arrive from far; time that starting a kernel takes.
    sources : mapping of str to str
        Where each number is from.
    """

    name: str
    cores: int
    clock_hz: float
    matrix_flops: float
    vector_lanes: float
    exp_lanes: float
    near_bytes: float
    l2_bytes: float
    far_bytes_per_s: float
    handover_s: float
    latency_s: float
    launch_s: float
    sources: Mapping[str, str]

    @property
    def peak_flops(self) -> float:
        """Operations that all matrix units do in a second."""
        return self.cores * self.clock_hz * self.matrix_flops

    def seconds(
        self,
        *,
        flops: float = 0.0,
        lanes: float = 0.0,
        exps: float = 0.0,
        near: float = 0.0,
        l2: float = 0.0,
        far: float = 0.0,
    ) -> dict[str, float]:
        """Return how long work takes each unit of a core that has its share of what is shared.

        Parameters
        ----------
        flops, lanes, exps : float
            Operations of the matrix unit, instructions of the vector unit, exponentials.
        near, l2, far : float
            Bytes from or to near memory, cache and far memory.
        """
        demands = {
            "matrix": (flops, self.clock_hz * self.matrix_flops),
            "vector": (lanes, self.clock_hz * self.vector_lanes),
            "exp": (exps, self.clock_hz * self.exp_lanes),
            "near": (near if self.near_bytes else 0.0, self.clock_hz * self.near_bytes),
            "l2": (l2, self.clock_hz * self.l2_bytes / self.cores),
            "far": (far, self.far_bytes_per_s / self.cores),
        }
        return {unit: amount / rate for unit, (amount, rate) in demands.items() if amount}


@cache
def _machines() -> dict[str, Machine]:
    file = resources.files(__package__) / "machines.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    return {key: Machine(**numbers) for key, numbers in data.items()}


MACHINES = ("h200", "v100", "ascend-910b2")
"""The names of the machines."""


def machine(name: str) -> Machine:
    """Return a machine by its name.

    Raises
    ------
    ParameterError
        If there is none of that name.
    """
    found = _machines().get(name)
    if found is None:
        raise ParameterError(f"machine: no machine {name!r}; there are {', '.join(_machines())}.")
    return found

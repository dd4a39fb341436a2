"""A model of machines that run attention by tiles: predictions, not measurements.

A small discrete-event simulation of one core, with its matrix unit, its vector unit and its
memories, driven by the plans that the backends use. README.md of this room says how good it is.
"""

from tesseral.attention.model.machine import MACHINES, Machine, machine
from tesseral.attention.model.npu import one_level
from tesseral.attention.model.predict import (
    Prediction,
    predict_gpu,
    predict_npu,
    predict_standard,
)
from tesseral.attention.model.simulator import Operation, Timeline, simulate
from tesseral.attention.model.tiles import GpuTiles, gpu_tiles

__all__ = [
    "MACHINES",
    "GpuTiles",
    "Machine",
    "Operation",
    "Prediction",
    "Timeline",
    "gpu_tiles",
    "machine",
    "one_level",
    "predict_gpu",
    "predict_npu",
    "predict_standard",
    "simulate",
]

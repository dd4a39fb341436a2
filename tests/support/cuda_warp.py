"""A warp in NumPy: shared memory, what its instructions do to 32 lanes, and where banks clash.

Instructions are as the PTX manual describes them. Addresses come from the ``layout.h`` that the
kernel includes: its macros are expressions of Python too.
"""

import re
from importlib import resources
from types import SimpleNamespace

import numpy as np

LANES = np.arange(32)
BANK_GROUPS = 8  # of 16 bytes
PIECE_NUMBERS = 8


def read_layout(chip, chunks):
    """Return the macros of a chip's ``layout.h`` as functions and numbers."""
    folder = resources.files("tesseral.attention.backends.cuda")
    text = (folder / chip / "layout.h").read_text(encoding="utf-8")
    found = {"CHUNKS": chunks}
    for name, names, body in re.findall(r"^#define (\w+)(?:\(([\w, ]*)\))? (.+)$", text, re.M):
        found[name] = eval(f"lambda {names}: {body}" if names else body, found)
    return SimpleNamespace(**{name: found[name] for name in found if name.isupper()})


def clashes(pieces):
    """Return how many rounds more than one each eight lanes need to move their 16 bytes.

    Lanes that name the same piece share it; others must differ in their bank group.
    """
    more = 0
    for eight in np.asarray(pieces).reshape(4, 8):
        distinct = np.unique(eight)
        more += np.bincount(distinct % BANK_GROUPS).max() - 1
    return more


class Memory:
    """Shared memory in pieces of 8 float16, which counts the clashes of all that is done."""

    def __init__(self, pieces):
        self.data = np.full((pieces, PIECE_NUMBERS), np.nan, dtype=np.float16)
        self.clashes = 0
        self.accesses = 0

    def _count(self, pieces):
        self.accesses += 1
        self.clashes += clashes(pieces)

    def store(self, pieces, values):
        """One 16-byte store of every lane."""
        self._count(pieces)
        self.data[pieces] = values

    def load(self, pieces):
        """One 16-byte load of every lane: (32, 8)."""
        self._count(pieces)
        return self.data[pieces].copy()

    def ldmatrix(self, pieces, *, transposed=False):
        """``ldmatrix.x4``: (32, 4 matrices, 2 numbers)."""
        self._count(pieces)
        rows = self.data[pieces].reshape(4, 8, 8)
        if transposed:
            rows = rows.transpose(0, 2, 1)
        # lane l holds numbers 2 (l % 4) and the next of row l / 4
        return rows.reshape(4, 32, 2).transpose(1, 0, 2)


def put_tile(memory, place, tile, threads):
    """Store a tile (rows, columns) as ``Pieces::put`` does: each thread its chunk of some rows."""
    rows, chunks = tile.shape[0], tile.shape[1] // PIECE_NUMBERS
    pieces = tile.reshape(rows, chunks, PIECE_NUMBERS)
    for first in range(0, rows * chunks, 32):
        index = first % threads + LANES + first // threads * threads
        row, chunk = index // chunks, index % chunks
        memory.store(place(row, chunk), pieces[row, chunk])


def shuffle_xor(values, mask):
    return values[LANES ^ mask]


def mma_m16n8k8(total, left, right):
    """``mma.m16n8k8``: total (32, 4), left (32, 2, 2), right (32, 2), all of the lanes."""
    g, t = LANES // 4, LANES % 4
    a, b = np.zeros((16, 8)), np.zeros((8, 8))
    for register in range(2):
        for i in range(2):
            a[g + 8 * register, 2 * t + i] = left[:, register, i]
    for i in range(2):
        b[2 * t + i, g] = right[:, i]
    c = a @ b
    add = np.stack([c[g + 8 * (i // 2), 2 * t + i % 2] for i in range(4)], axis=1)
    return total + add


def mma_m8n8k4(total, left, right, *, by_rows=False, half=False):
    """``mma.m8n8k4``, one product for each quad pair: total (32, 8), left and right (32, 4).

    ``by_rows`` is ``.row`` for the right operand, ``half`` is accumulators in float16.
    """
    result = np.empty_like(total)
    for quad in range(4):
        lanes = np.concatenate([4 * quad + np.arange(4), 16 + 4 * quad + np.arange(4)])
        number = np.arange(8)  # of a lane in its quad pair: lane % 4, and 4 for the upper
        a, b = np.zeros((8, 4)), np.zeros((4, 8))
        a[number] = left[lanes]
        if by_rows:
            for at, lane in enumerate(lanes):
                b[at % 4, 4 * (at // 4) : 4 * (at // 4) + 4] = right[lane]
        else:
            b[:, number] = right[lanes].T
        c = a @ b
        for at, lane in enumerate(lanes):
            for i in range(8):
                row, column = at, i
                if not half:
                    row = (at % 4 & 1) + (i & 2) + 4 * (at // 4)
                    column = (i & 4) + (at % 4 & 2) + (i & 1)
                result[lane, i] = total[lane, i] + c[row, column]
    return result

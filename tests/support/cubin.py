"""What machine code of CUDA says of itself, read without a disassembler.

Since Volta an instruction has 16 bytes, and its low 12 bits say what it does, the upper three of
them in which form. The numbers below are those that ``nvdisasm`` gives these names to.
"""

import struct
from collections import Counter
from dataclasses import dataclass

NAMES = {
    0x236: "HMMA.884",
    0x23C: "HMMA.1688",
    0x237: "IMMA",
    0x984: "LDS",
    0x83B: "LDSM",
    0x388: "STS",
    0x983: "LDL",
    0x387: "STL",
    0xF89: "SHFL.BFLY",
    0xB1D: "BAR",
}


@dataclass(frozen=True)
class Listing:
    """Registers of a kernel, and how often it has the instructions that we know."""

    registers: int
    count: Counter


def read_cubin(code, kernel):
    """Return the listing of one kernel of an ELF file."""
    (table,) = struct.unpack_from("<Q", code, 0x28)
    size, count, names = struct.unpack_from("<HHH", code, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, table + i * size) for i in range(count)]
    base = sections[names][4]
    for section in sections:
        name = code[base + section[0] : code.index(0, base + section[0])].decode()
        if name == f".text.{kernel}":
            body = code[section[4] : section[4] + section[5]]
            words = [struct.unpack_from("<Q", body, i)[0] for i in range(0, len(body), 16)]
            found = Counter(NAMES.get(word & 0xFFF, "other") for word in words)
            return Listing(registers=section[7] >> 24, count=found)
    raise ValueError(f"no kernel {kernel}")

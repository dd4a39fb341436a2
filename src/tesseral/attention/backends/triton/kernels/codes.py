"""Codes of 4 and 8 bits as numbers, each exact in float16."""

import triton
import triton.language as tl


@triton.jit
def widen_bytes(codes, SIGNED: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return bytes as float16: 1024 + c has the bits 0x6400 + c, so that no conversion is needed.

    Without ``ASSEMBLY``, as in the interpreter, they are converted.
    """
    if ASSEMBLY:
        if SIGNED:
            codes = codes ^ 0x80
        numbers = tl.inline_asm_elementwise(
            """{
            prmt.b32 $0, $2, 0x64646464, 0x4140;
            prmt.b32 $1, $2, 0x64646464, 0x4342;
            }""",
            "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4,
        )  # fmt: skip
        numbers = numbers - (1152.0 if SIGNED else 1024.0)
    elif SIGNED:
        numbers = codes.to(tl.int8, bitcast=True).to(tl.float16)
    else:
        numbers = codes.to(tl.float16)
    return numbers


@triton.jit
def widen_nibbles(codes, SIGNED: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return the low and the high halves of bytes as float16: codes at even and odd places."""
    if ASSEMBLY:
        if SIGNED:
            codes = codes ^ 0x88
        low, high = tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high;
            and.b32 low, $4, 0x0f0f0f0f;
            shr.b32 high, $4, 4;
            and.b32 high, high, 0x0f0f0f0f;
            prmt.b32 $0, low, 0x64646464, 0x4140;
            prmt.b32 $1, low, 0x64646464, 0x4342;
            prmt.b32 $2, high, 0x64646464, 0x4140;
            prmt.b32 $3, high, 0x64646464, 0x4342;
            }""",
            "=r,=r,=r,=r,r", [codes], dtype=(tl.float16, tl.float16), is_pure=True, pack=4,
        )  # fmt: skip
        low = low - (1032.0 if SIGNED else 1024.0)
        high = high - (1032.0 if SIGNED else 1024.0)
    else:
        low = (codes & 15).to(tl.int16)
        high = (codes >> 4).to(tl.int16)
        if SIGNED:
            low = (low ^ 8) - 8
            high = (high ^ 8) - 8
        low = low.to(tl.float16)
        high = high.to(tl.float16)
    return low, high

"""Codes of 4 and 8 bits as float16: subnormal numbers, which take no conversion.

The bits of a code ``c`` below 1024, read as float16, are the number ``c / 2^24``; those of a code
four places up are ``c / 2^20``. Tensor cores multiply them exactly, so that masking a word of codes
is all that is done to it; the powers of two go into scales.
"""

import triton
import triton.language as tl

UNIT = tl.constexpr(2.0**24)
"""What a product with such numbers is short by."""


@triton.jit
def widen(words, BITS: tl.constexpr, SIGNED: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return the codes in words of 16 bits, least significant first, each in units of 2^-24.

    Of 4 bits, the second and the fourth are 16 times as large; of 8 bits there are two, given
    twice. ``SIGNED`` codes come out larger by half their range. ``ASSEMBLY`` takes two words at
    once.
    """
    SHIFT: tl.constexpr = (0x88 if BITS == 4 else 0x80) * 0x0101 - 2**16
    if SIGNED:
        words = words ^ SHIFT
    if ASSEMBLY:
        if BITS == 4:
            first, second, third, fourth = tl.inline_asm_elementwise(
                """{
                .reg .b32 upper;
                shr.b32 upper, $4, 8;
                and.b32 $0, $4, 0x000f000f;
                and.b32 $1, $4, 0x00f000f0;
                and.b32 $2, upper, 0x000f000f;
                and.b32 $3, upper, 0x00f000f0;
                }""",
                "=r,=r,=r,=r,r", [words], dtype=(tl.float16,) * 4, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            first, second = tl.inline_asm_elementwise(
                """{
                and.b32 $0, $2, 0x00ff00ff;
                prmt.b32 $1, $2, 0, 0x4341;
                }""",
                "=r,=r,r", [words], dtype=(tl.float16,) * 2, is_pure=True, pack=2,
            )  # fmt: skip
            third, fourth = first, second
    else:
        first = _place(words, 0, 0xF if BITS == 4 else 0xFF)
        second = _place(words, 0, 0xF0) if BITS == 4 else _place(words, 8, 0xFF)
        third = _place(words, 8, 0xF)
        fourth = _place(words, 8, 0xF0)
    return first, second, third, fourth


@triton.jit
def _place(words, PLACES: tl.constexpr, MASK: tl.constexpr):
    return ((words >> PLACES) & MASK).to(tl.int16).to(tl.float16, bitcast=True)

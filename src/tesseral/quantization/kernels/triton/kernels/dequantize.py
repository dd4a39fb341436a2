"""Heads of keys or values on their way back: codes with scale and offset become numbers."""

import triton
import triton.language as tl


@triton.jit
def dequantize_heads_kernel(
    data,
    data_batch,
    data_head,
    data_token,
    scale,
    offset,
    scale_batch,
    scale_head,
    scale_token,
    out,
    out_batch,
    out_head,
    out_token,
    heads,
    tokens,
    size: tl.constexpr,
    bits: tl.constexpr,
    block: tl.constexpr,
):
    """Write rows of ``size`` numbers; a program takes ``block`` tokens of one head."""
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // heads, pair % heads
    token = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    seen = token < tokens
    per_byte: tl.constexpr = 8 // bits
    column = tl.arange(0, size // per_byte)
    place = data + batch * data_batch + head * data_head
    codes = tl.load(place + token[:, None] * data_token + column[None, :], seen[:, None], 0)
    if bits == 4:
        codes = tl.interleave(codes & 15, codes >> 4)
    at = batch * scale_batch + head * scale_head + token * scale_token
    step = tl.load(scale + at, seen, 0).to(tl.float32)
    least = tl.load(offset + at, seen, 0).to(tl.float32)
    numbers = codes.to(tl.float32) * step[:, None] + least[:, None]
    target = out + batch * out_batch + head * out_head
    wide = tl.arange(0, size)
    tl.store(
        target + token[:, None] * out_token + wide[None, :],
        numbers.to(out.dtype.element_ty),
        seen[:, None],
    )

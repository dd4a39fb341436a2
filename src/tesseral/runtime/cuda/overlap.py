"""Triton kernels that start while the one before still runs (compute capability 9.0 and later).

A kernel launched with ``launch_pdl`` may start once every program of the one before has called
:func:`let_next_start` or ended. Until it has waited it may touch nothing that others write.
Triton has functions for both; in 3.4 they do not compile.
"""

import triton
import triton.language as tl


@triton.jit
def let_next_start():
    """Let the kernel that follows start, as far as this program is concerned."""
    tl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def wait_for_previous():
    """Wait until the kernel before has ended and what it wrote can be read."""
    tl.inline_asm_elementwise(
        "griddepcontrol.wait; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )

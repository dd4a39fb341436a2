"""Where transforms act in a decoder block, and where their inverses go.

====== ======================== ========== =====================================
name   acts on                  at runtime inverse goes into
====== ======================== ========== =====================================
P_a    input of query/key/value online     their weights
P_o    heads of output's input  online     output's weight
P_v    each head of value       merged     value's weight; inverse into output's
P_h    keys after rotary        online     queries after rotary (online)
P_ug   input of gate/up         online     their weights
P_d    input of down            online     down's weight
====== ======================== ========== =====================================

A per-channel scale beside P_a, P_ug and P_d is merged into the norm before, or into up's
rows (FlatQuant, section 4.1 and figure 3). P_o and P_v together are one Kronecker product
on the input of the output projection, of which only the left factor is left at run time.
"""

from dataclasses import dataclass

from tesseral.core.kronecker import balanced_factors

ROLES = ("query", "key", "value", "output", "gate", "up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """Sizes of one decoder block."""

    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLayout:
    """Names of the modules of one decoder block, relative to the block.

    ``linears`` maps each role of :data:`ROLES` to a module; ``norms`` maps ``"attention"``
    and ``"mlp"`` to the norms whose output the attention and the MLP read; ``attention`` is
    the module that is handed to the attention function.
    """

    attention: str
    linears: dict[str, str]
    norms: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSite:
    """One tensor that linear layers read, transformed and quantised once for all of them.

    Attributes
    ----------
    name : str
        Name of the module that holds the transform.
    transforms : str
        The paper's name.
    readers : tuple of str
        Roles of the linear layers that read it; their weights take the inverse.
    per_head : bool
        Factors are (heads, head_dim) in place of a balanced split of the width.
    merged_into : str, optional
        Role whose rows take the right factor, so that it costs nothing at run time.
    scale_into : str, optional
        Norm or role whose output takes the per-channel scale.
    """

    name: str
    transforms: str
    readers: tuple[str, ...]
    per_head: bool = False
    merged_into: str | None = None
    scale_into: str | None = None

    def factor_sizes(self, shape: BlockShape) -> tuple[int, int]:
        """Return the sizes of the two Kronecker factors."""
        if self.per_head:
            return shape.n_heads, shape.head_dim
        return balanced_factors(self.width(shape))

    def width(self, shape: BlockShape) -> int:
        """Return the number of channels."""
        if self.per_head:
            return shape.n_heads * shape.head_dim
        return shape.intermediate if self.readers == ("down",) else shape.hidden


INPUT_SITES = (
    InputSite(
        name="attention_input",
        transforms="P_a",
        readers=("query", "key", "value"),
        scale_into="attention",
    ),
    InputSite(
        name="attention_output",
        transforms="P_o (x) P_v",
        readers=("output",),
        per_head=True,
        merged_into="value",
    ),
    InputSite(name="mlp_input", transforms="P_ug", readers=("gate", "up"), scale_into="mlp"),
    InputSite(name="mlp_hidden", transforms="P_d", readers=("down",), scale_into="up"),
)
"""The rows of the table that concern linear layers; P_h belongs to the cache's codec."""

CODEC = "kv_codec"
"""Name under which an attention module holds the codec of its keys and values."""


def site_of(role: str) -> InputSite:
    """Return the site that a linear layer reads."""
    return next(site for site in INPUT_SITES if role in site.readers)

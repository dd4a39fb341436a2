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

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tesseral.core.kronecker import balanced_factors

ROLES = ("query", "key", "value", "output", "gate", "up", "down")
EXPERT = "*"
"""Stands for the number of an expert in the names of a :class:`BlockLayout`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """Sizes of one decoder block; ``intermediate`` is that of one expert where there are some."""

    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int

    def rows(self, role: str) -> int:
        """Return how many output channels a role has."""
        if role in ("key", "value"):
            return self.n_kv_heads * self.head_dim
        if role == "query":
            return self.n_heads * self.head_dim
        return self.intermediate if role in ("gate", "up") else self.hidden


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLayout:
    """Names of the modules of one decoder block, relative to the block.

    Attributes
    ----------
    attention : str
        The module that is handed to the attention function.
    linears : mapping of str to tuple of str
        Linear layers, in the order in which they run, and the roles that their rows play, in
        the order of the rows. Modules of one parent that read a site read the same tensor.
    norms : mapping of str to str
        Norms over the whole width, in the order in which they run. ``"attention"`` and
        ``"mlp"`` are those whose output the attention and the MLP read, if there are such.
    norm_offset : float
        A norm multiplies by its weight plus this.
    experts : str, optional
        Module of fused experts. It is taken apart, so that the linear layers of expert ``i``
        have the names in ``linears`` with ``i`` in place of :data:`EXPERT`.
    unquantised : mapping of str to tuple of str
        For a site, modules that read it beside the linear layers and stay as they are, such
        as routers.
    """

    attention: str
    linears: Mapping[str, tuple[str, ...]]
    norms: Mapping[str, str]
    norm_offset: float = 0.0
    experts: str | None = None
    unquantised: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def with_experts(self, count: int) -> "BlockLayout":
        """Return the layout with the names of ``count`` experts spelled out."""
        per_expert = {n: roles for n, roles in self.linears.items() if EXPERT in n}
        linears = {n: roles for n, roles in self.linears.items() if n not in per_expert}
        for number in map(str, range(count)):
            linears |= {n.replace(EXPERT, number): roles for n, roles in per_expert.items()}
        return replace(self, linears=linears)

    def readers(self, site: InputSite) -> tuple[str, ...]:
        """Return the linear layers that read a site."""
        return tuple(n for n, roles in self.linears.items() if site_of(roles[0]) == site)

    def first_readers(self, site: InputSite) -> tuple[str, ...]:
        """Return one linear layer for each tensor that is read at a site: one, or one an expert."""
        first: dict[str, str] = {}
        for name in self.readers(site):
            first.setdefault(_parent(name), name)
        return tuple(first.values())

    def takes_scale(self, site: InputSite) -> bool:
        """Say whether a per-channel scale of a site can be merged into what comes before it."""
        return site.scale_into in ROLES or site.scale_into in self.norms

    def owner(self, site: InputSite) -> str:
        """Return the module that owns a site's transform: the one around all its readers."""
        parent = _parent(self.readers(site)[0])
        return _parent(parent) if parent.rpartition(".")[2].isdigit() else parent

    def rows(self, name: str, role: str, shape: BlockShape) -> slice | None:
        """Return the rows of a linear layer that play a role, ``None`` if none do."""
        start = 0
        for own in self.linears[name]:
            stop = start + shape.rows(own)
            if own == role:
                return slice(start, stop)
            start = stop
        return None


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def site_of(role: str) -> InputSite:
    """Return the site that a linear layer reads."""
    return next(site for site in INPUT_SITES if role in site.readers)

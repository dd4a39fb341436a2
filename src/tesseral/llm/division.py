"""How a model's heads are divided among ranks."""

from typing import Any

from tesseral._errors import ParameterError

SPLIT = "rowwise_split_input"
"""Style of an output projection in transformers' plans whose input every rank needs whole."""


def heads_of(text: Any, ranks: int = 1) -> tuple[int, int, int]:
    """Return a rank's query heads, its key heads, and their width.

    Parameters
    ----------
    text : transformers configuration
        Of a decoder.
    ranks : int
        Among how many the heads are divided.
    """
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return heads // ranks, kv_heads // ranks, width


def head_ranks(model: Any) -> int:
    """Return among how many ranks a model's heads are divided."""
    ranks: int = getattr(model, "_head_ranks", 1)
    return ranks


def divides_heads(config: Any) -> bool:
    """Return whether ranks divide the heads of such a model, or all have them all."""
    plan = getattr(config.get_text_config(decoder=True), "base_model_tp_plan", None) or {}
    return SPLIT not in plan.values()


def check_heads(config: Any, ranks: int) -> None:
    """Refuse a number of ranks that does not divide heads.

    Raises
    ------
    ParameterError
        If so.
    """
    text = config.get_text_config(decoder=True)
    for what in ("num_attention_heads", "num_key_value_heads"):
        count = getattr(text, what, None)
        if count is not None and count % ranks:
            raise ParameterError(
                f"tensor parallelism: {ranks} ranks do not divide {what}={count}; use a number of "
                "ranks that does."
            )

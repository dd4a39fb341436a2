"""Text that is handed on while it is generated."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import TextStreamer


class TextWriter(TextStreamer):  # type: ignore[misc]  # transformers is untyped to mypy
    """Passes each finished piece of generated text on, the prompt left out.

    A piece ends where later tokens cannot change it any more, which is mostly after a word.

    Parameters
    ----------
    tokenizer
        Of the model that generates.
    write : callable
        Receives the pieces in order.

    Attributes
    ----------
    n_tokens : int
        Tokens generated so far.
    """

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write
        self.n_tokens = -1  # the first call brings the prompt

    def put(self, value: Any) -> None:
        """Take the prompt, or the next token."""
        self.n_tokens += 1
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on a piece of text."""
        del stream_end
        if text:
            self._write(text)

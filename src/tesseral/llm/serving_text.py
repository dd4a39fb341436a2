"""Text out of tokens that come one by one, and where to stop."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase as Tokenizer

_UNFINISHED = "\ufffd"  # what the bytes of half a character decode to


class TextPieces:
    """Turns tokens into pieces of text, up to the first of some stop strings.

    A piece is handed out when later tokens can neither change it nor make it part of a stop
    string. The pieces together are the text of all tokens, cut before the stop string.

    Parameters
    ----------
    tokenizer
        Of the model that generates.
    stops : sequence of str
        None of them empty.
    skip_special_tokens : bool
        Whether special tokens give no text.

    Attributes
    ----------
    stopped : bool
        Whether a stop string was met; what comes after it is dropped.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer, self._stops, self._skips = tokenizer, tuple(stops), skip_special_tokens
        self._tokens: list[int] = []
        self._context = self._read = 0  # tokens before a piece, which may change its spaces
        self._held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """Take the next token and return the text that is sure now."""
        self._tokens.append(token)
        return self._hand_out(self._decoded(finish=False))

    def finish(self) -> str:
        """Return what is left when no token comes any more."""
        text = self._hand_out(self._decoded(finish=True))
        rest, self._held = self._held, ""
        return text + rest

    def _decoded(self, *, finish: bool) -> str:
        known = self._decode(self._tokens[self._context : self._read])
        text = self._decode(self._tokens[self._context :])
        if text.endswith(_UNFINISHED) and not finish:
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return text[len(known) :]

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=self._skips)
        return text

    def _hand_out(self, text: str) -> str:
        """Return what can be handed out of all that is held and ``text``."""
        if self.stopped:
            return ""
        self._held += text
        ends = [end for stop in self._stops if (end := self._held.find(stop)) >= 0]
        if ends:
            text, self._held, self.stopped = self._held[: min(ends)], "", True
            return text
        end = len(self._held) - max((_overlap(self._held, stop) for stop in self._stops), default=0)
        text, self._held = self._held[:end], self._held[end:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest beginning of ``stop`` that ends ``text``."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)

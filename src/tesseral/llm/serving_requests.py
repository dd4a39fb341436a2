"""What a client may ask of the server: fields of OpenAI's interface, checked one by one.

A field that would change the answer and cannot be honoured is refused, unless it asks for what
is done anyway.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.functional_validators import AfterValidator

from tesseral._errors import DataError


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_encodable)]


class _Strict(BaseModel):
    """Unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """A part of a message; there are no others than texts."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]
    name: str | None = None


class StreamOptions(_Strict):
    """Usage comes with the last chunk, asked for or not."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Request(_Strict):
    """What both endpoints take.

    Attributes
    ----------
    model : str
        Name under which the model is served.
    max_tokens : int, optional
        Tokens to generate at most.
    temperature : float, optional
        0 takes the likeliest token.
    top_p : float, optional
        Tokens are drawn from the likeliest that make up this probability.
    stop : str or list of str, optional
        The text ends before the first of these.
    """

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    user: str | None = None
    # accepted at the one value at which they change nothing
    n: Literal[1] | None = None
    seed: None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    def options(self) -> dict[str, Any]:
        """Return the fields that are set, as transformers' handlers take them."""
        ours = {"n", "seed", "logit_bias", "presence_penalty", "frequency_penalty"}
        return self.model_dump(exclude_none=True, exclude=ours)


class ChatRequest(_Request):
    """A request to ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None


class CompletionRequest(_Request):
    """A request to ``/v1/completions``."""

    prompt: Text
    logprobs: None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


def read_request(kind: type[_Request], body: Any) -> dict[str, Any]:
    """Return the checked fields of a request's body.

    Raises
    ------
    DataError
        If it is none; the message names the first fields that are wrong.
    """
    try:
        return kind.model_validate(body).options()
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        lines = [f"{'.'.join(map(str, e['loc']))[:80] or 'body'}: {e['msg']}" for e in found[:3]]
        raise DataError("; ".join(lines)) from None

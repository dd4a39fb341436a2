"""Requests are OpenAI's, and what cannot be honoured is refused with the name of the field."""

import pytest

from tesseral._errors import DataError
from tesseral.llm.serving_requests import ChatRequest, CompletionRequest, read_request

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "m", "messages": HELLO}
COMPLETION = {"model": "m", "prompt": "Hello"}


def test_fields_that_are_set_are_passed_on():
    body = CHAT | {"temperature": 0, "stop": ["a"], "stream": True, "user": None}
    assert read_request(ChatRequest, body) == CHAT | {
        "temperature": 0,
        "stop": ["a"],
        "stream": True,
    }


def test_messages_may_be_made_of_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    assert read_request(ChatRequest, CHAT | {"messages": messages})["messages"] == messages


def test_what_asks_for_nothing_is_taken_and_not_passed_on():
    idle = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "seed": None}
    assert read_request(CompletionRequest, COMPLETION | idle) == COMPLETION


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (ChatRequest, {"messages": []}, "messages: "),
        (ChatRequest, {"messages": [{"role": "robot", "content": ""}]}, "messages.0.role: "),
        (ChatRequest, {"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        (ChatRequest, {"messages": [{"role": "user", "content": 3}]}, "messages.0.content."),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": ""}]}]},
            "messages.0.content.",
        ),
        (ChatRequest, {"max_completion_tokens": True}, "max_completion_tokens: "),
        (ChatRequest, {"tools": []}, "tools: Extra inputs"),
        (ChatRequest, {"model": None}, "model: "),
        (CompletionRequest, {"prompt": ["a"]}, "prompt: "),
        (CompletionRequest, {"prompt": "\ud83d"}, "half of a surrogate pair"),
        (CompletionRequest, {"max_tokens": 0}, "max_tokens: "),
        (CompletionRequest, {"max_tokens": 1.5}, "max_tokens: "),
        (CompletionRequest, {"temperature": float("nan")}, "temperature: "),
        (CompletionRequest, {"temperature": "hot"}, "temperature: "),
        (CompletionRequest, {"temperature": -1}, "temperature: "),
        (CompletionRequest, {"top_p": 0}, "top_p: "),
        (CompletionRequest, {"stop": ""}, "stop."),
        (CompletionRequest, {"stop": ["a"] * 5}, "stop."),
        (CompletionRequest, {"n": 2}, "n: "),
        (CompletionRequest, {"seed": 1}, "seed: "),
        (CompletionRequest, {"logit_bias": {"1": 2}}, "logit_bias: "),
        (CompletionRequest, {"presence_penalty": 0.5}, "presence_penalty: "),
        (CompletionRequest, {"logprobs": 3}, "logprobs: "),
        (CompletionRequest, {"x" * 1000: 3}, "x" * 80 + ": Extra inputs"),
    ],
)
def test_what_is_wrong_is_named(kind, changes, said):
    body = (CHAT if kind is ChatRequest else COMPLETION) | changes
    with pytest.raises(DataError) as error:
        read_request(kind, body)
    assert said in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("body", [None, 3, "text", [CHAT]])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(DataError, match="body: Input should be"):
        read_request(ChatRequest, body)

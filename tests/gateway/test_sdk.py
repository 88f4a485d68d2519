"""The real OpenAI SDK against the gateway, in front of a vendor of either kind; and the real Anthropic SDK
against the mock vendor, to see that the mock is like the vendor."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from gateway_support import API_KEY, TOKEN, Gateway, Mock, wait_for
from pydantic import BaseModel, TypeAdapter

from hearth_gateway.translate.anthropic_request import build_messages_request
from hearth_gateway.translate.openai_request import parse_chat_request

HELLO: Any = [{"role": "user", "content": "Hello, dear friends"}]
ECHO = "You said: Hello, dear friends"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get.weather",
        "description": "Weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}

# The same scenarios at both vendors: x-… is Anthropic's own API, y-… an OpenAI-compatible server.
BOTH = pytest.mark.parametrize("kind", ["x", "y"], ids=["anthropic", "openai"])


@BOTH
def test_chat(shared: Gateway, kind: str) -> None:
    answer = shared.client().chat.completions.create(model=f"{kind}-normal", messages=HELLO)
    assert answer.choices[0].message.content == ECHO
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == f"{kind}-normal"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 5, 8)


@BOTH
def test_stream(shared: Gateway, kind: str) -> None:
    chunks = list(
        shared.client().chat.completions.create(model=f"{kind}-normal", messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ECHO
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert len({chunk.id for chunk in chunks}) == 1


@BOTH
@pytest.mark.parametrize("scenario", ["odd-sse", "gzip", "json", "pings", "thinking"])
def test_streams_in_odd_clothes(shared: Gateway, kind: str, scenario: str) -> None:
    messages: Any = [{"role": "user", "content": "Grüße an alle 🔥"}]
    stream = shared.client().chat.completions.create(model=f"{kind}-{scenario}", messages=messages, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "You said: Grüße an alle 🔥"


def test_models(shared: Gateway) -> None:
    models = {model.id: model for model in shared.client().models.list()}
    assert set(models) == {name for section in ("models", "embedding_models", "image_models") for name in shared.config[section]}
    assert models["sonnet"].owned_by == "anthropic"
    assert shared.client().models.retrieve("sonnet") == models["sonnet"]
    with pytest.raises(openai.NotFoundError):
        shared.client().models.retrieve("no-such-model")


def test_what_is_told_about_a_model(own: Any, second_vendor: Mock) -> None:
    price = {
        "provider": "litellm",
        "model": "mock+normal",
        "input_usd": "0.10",
        "output_usd": "2",
        "source": "a test",
        "date": "2026-11-21",
    }
    gateway = own(second_url=second_vendor.url, prices=[price], system_prompts={"sonnet": "Be kind."})
    models: Any = {model.id: model for model in gateway.client().models.list()}
    sonnet = models["sonnet"].hearth
    assert (sonnet["kind"], sonnet["demo"], sonnet["max_output_tokens"]) == ("chat", False, 64_000)
    assert sonnet["system_prompt"] == "Be kind."
    assert [offer["provider"] for offer in models["f-500"].hearth["providers"]] == ["anthropic", "litellm"]
    served = models["y-normal"].hearth
    assert served["unpriced"] is False
    assert {name: served["price"][name] for name in ("input_usd", "output_usd", "cache_read_usd", "source", "date")} == {
        "input_usd": "0.1", "output_usd": "2", "cache_read_usd": "0.01", "source": "a test", "date": "2026-11-21",
    }  # fmt: skip
    # Nobody said what the mock costs: that is not the same as nothing.
    assert models["x-normal"].hearth["price"] is None and models["x-normal"].hearth["unpriced"] is True
    assert (models["embed"].hearth["kind"], models["draw"].hearth["kind"]) == ("embedding", "image")
    assert models["demo"].hearth["demo"] is True


def test_the_system_prompt_of_a_model_comes_first_in_both_formats(own: Any, vendor: Mock) -> None:
    gateway = own(system_prompts={"sonnet": "Be kind and brief."})
    client = gateway.client()
    asked: Any = [{"role": "system", "content": "Speak German."}, *HELLO]
    # Four words of the house, two of the caller, three of the question: the mock counts what reached it.
    answer = client.chat.completions.create(model="sonnet", messages=asked)
    assert answer.usage is not None and answer.usage.prompt_tokens == 9
    plain = client.chat.completions.create(model="x-normal", messages=asked)
    assert plain.usage is not None and plain.usage.prompt_tokens == 5
    native = anthropic.Anthropic(base_url=gateway.url, api_key=TOKEN, max_retries=0)
    message = native.messages.create(model="sonnet", max_tokens=50, system="Speak German.", messages=HELLO)
    assert message.usage.input_tokens == 9


class Echo(BaseModel):
    said: str


@BOTH
def test_structured_output(shared: Gateway, kind: str) -> None:
    client = shared.client()
    parsed = client.chat.completions.parse(model=f"{kind}-normal", messages=HELLO, response_format=Echo)
    assert parsed.choices[0].message.parsed == Echo(said="Hello, dear friends")
    with client.chat.completions.stream(model=f"{kind}-normal", messages=HELLO, response_format=Echo) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == Echo(said="Hello, dear friends")


def test_headers_say_who_served(shared: Gateway) -> None:
    response = shared.client().chat.completions.with_raw_response.create(
        model="sonnet", messages=HELLO, seed=1, temperature=1.5, extra_body={"top_k": 3, "secret_field": 1}
    )
    headers = response.headers
    assert headers["x-hearth-provider"] == "anthropic"
    assert headers["x-hearth-model"] == "claude-sonnet-4-5-20250929"
    assert headers["x-hearth-attempts"] == "1"
    assert headers["x-hearth-ignored"] == "seed,top_k,unknown-fields"
    assert headers["x-hearth-adjusted"] == "temperature"


@BOTH
def test_tools_there_and_back(shared: Gateway, vendor: Mock, second_vendor: Mock, kind: str) -> None:
    mock = vendor if kind == "x" else second_vendor
    client = shared.client()
    for stream in (False, True):
        first: Any = client.chat.completions.create(
            model=f"{kind}-tool", messages=HELLO, tools=[WEATHER], tool_choice="required", stream=stream
        )
        if stream:
            name = arguments = call_id = ""
            for chunk in first:
                for call in chunk.choices[0].delta.tool_calls or []:
                    call_id += call.id or ""
                    name += call.function.name or ""
                    arguments += call.function.arguments or ""
        else:
            assert first.choices[0].finish_reason == "tool_calls"
            assert first.choices[0].message.content is None
            call = first.choices[0].message.tool_calls[0]
            call_id, name, arguments = call.id, call.function.name, call.function.arguments
        assert (name, json.loads(arguments)) == ("get.weather", {"place": "Zürich", "days": 3})
        call_message: Any = {
            "role": "assistant",
            "tool_calls": [{"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}],
        }
        result: Any = {"role": "tool", "tool_call_id": call_id, "content": "Sunny"}
        before = mock.asked()
        client.chat.completions.create(model=f"{kind}-normal", messages=[*HELLO, call_message, result], tools=[WEATHER])
        record = mock.next_record(before)
        assert record["roles"] == ["user", "assistant", "user" if kind == "x" else "tool"]
        if kind == "x":
            assert record["blocks"] == [["text"], ["tool_use"], ["tool_result"]]


@BOTH
def test_a_tool_without_arguments_gets_an_empty_object(shared: Gateway, kind: str) -> None:
    answer: Any = shared.client().chat.completions.create(model=f"{kind}-tool-empty", messages=HELLO, tools=[WEATHER])
    assert answer.choices[0].message.tool_calls[0].function.arguments == "{}"


@BOTH
def test_images_and_documents(shared: Gateway, vendor: Mock, second_vendor: Mock, kind: str) -> None:
    mock = vendor if kind == "x" else second_vendor
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
    pdf = "JVBERi0xLjcKJWhlbGxvCg=="
    content: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{pdf}"}},
    ]
    before = mock.asked()
    answer = shared.client().chat.completions.create(model=f"{kind}-normal", messages=[{"role": "user", "content": content}])
    assert answer.choices[0].message.content == "You said: What is this?"
    assert mock.next_record(before)["blocks"] == [["text", "image", "document"] if kind == "x" else ["text", "image_url", "file"]]


def test_cached_tokens_and_stop_reasons(shared: Gateway) -> None:
    client = shared.client()
    before = shared.settled_rows()
    answer = client.chat.completions.create(model="x-cache", messages=HELLO)
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens == 1203
    assert answer.usage.prompt_tokens_details.cached_tokens == 1000
    row = shared.wait_row(before)
    assert (row["input_tokens"], row["cache_read_tokens"], row["cache_write_tokens"]) == (3, 1000, 200)
    assert (row["cache_write_1h_tokens"], row["output_tokens"]) == (50, 5)
    for scenario, reason in (("max-tokens", "length"), ("refusal", "content_filter"), ("unknown-stop", "stop")):
        answer = client.chat.completions.create(model=f"x-{scenario}", messages=HELLO)
        assert answer.choices[0].finish_reason == reason


def test_parameters_reach_the_vendor(shared: Gateway, vendor: Mock) -> None:
    client = shared.client()
    before = vendor.asked()
    answer = client.chat.completions.create(model="sonnet", messages=HELLO, max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert vendor.next_record(before)["max_tokens"] == 3
    answer = client.chat.completions.create(model="sonnet", messages=HELLO, stop="dear")
    assert answer.choices[0].message.content == "You said: Hello, "
    before = vendor.asked()
    client.chat.completions.create(model="sonnet", messages=HELLO, user="ann@example.org")
    record = vendor.next_record(before)
    assert record["max_tokens"] == 64_000
    assert record["keys"] == ["max_tokens", "messages", "model", "stream"]


@pytest.mark.parametrize(
    ("model", "exception", "status", "code"),
    [
        ("no-such-model", openai.NotFoundError, 404, "model_not_found"),
        ("401", openai.InternalServerError, 502, "upstream_auth"),
        ("403", openai.InternalServerError, 502, "upstream_auth"),
        ("404", openai.InternalServerError, 502, "model_unavailable"),
        ("413", openai.APIStatusError, 413, "request_too_large"),
        ("429", openai.RateLimitError, 429, "rate_limit_exceeded"),
        ("500", openai.InternalServerError, 502, "upstream_error"),
        ("503", openai.InternalServerError, 502, "upstream_error"),
        ("529", openai.InternalServerError, 503, "upstream_overloaded"),
        ("error-before", openai.InternalServerError, 502, "upstream_error"),
        ("overloaded", openai.InternalServerError, 503, "upstream_overloaded"),
        ("quote", openai.BadRequestError, 400, "invalid_request"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@BOTH
def test_errors_raise_the_right_class(
    shared: Gateway, kind: str, model: str, exception: type[openai.APIStatusError], status: int, code: str, stream: bool
) -> None:
    shared.breakers_over()
    with pytest.raises(exception) as caught:
        shared.client().chat.completions.create(model=f"{kind}-{model}", messages=HELLO, stream=stream)
    assert caught.value.status_code == status
    assert caught.value.code == code
    assert isinstance(caught.value.body, dict) and caught.value.body["message"]


@BOTH
def test_retry_after_is_passed_on(shared: Gateway, kind: str) -> None:
    shared.breakers_over()
    with pytest.raises(openai.RateLimitError) as caught:
        shared.client().chat.completions.create(model=f"{kind}-429", messages=HELLO)
    assert caught.value.response.headers["retry-after"] == "7"
    shared.breakers_over()
    with pytest.raises(openai.RateLimitError) as caught:
        shared.client().chat.completions.create(model=f"{kind}-429-bare", messages=HELLO)
    # The vendor said nothing. What may be there is the breaker's own pause, 10 ms, in whole seconds.
    assert caught.value.response.headers.get("retry-after") in (None, "1")


def test_wrong_requests_and_tokens(shared: Gateway) -> None:
    client = shared.client()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sonnet", messages=HELLO, n=2)
    assert caught.value.param == "n"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sonnet", messages=[])
    assert caught.value.param == "messages"
    for token in ("wrong-token-wrong-token", "x"):
        with pytest.raises(openai.AuthenticationError) as refused:
            shared.client(api_key=token).models.list()
        assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError):
        shared.client(default_headers={"x-api-key": "something"}).models.list()


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("error-after", "internal error"),
        ("cut", "broke during the answer"),
        ("eof", "before it was complete"),
        ("silent-after", "fell silent"),
        ("garbage-after", "not an answer"),
    ],
)
@BOTH
def test_a_broken_stream_raises_and_never_ends_well(shared: Gateway, kind: str, scenario: str, words: str) -> None:
    stream = shared.client().chat.completions.create(model=f"{kind}-{scenario}", messages=HELLO, stream=True)
    text = ""
    with pytest.raises(openai.APIError, match=words):
        for chunk in stream:
            assert chunk.choices[0].finish_reason is None
            text += chunk.choices[0].delta.content or ""
    assert text == "You said:"


def test_the_demo_provider_says_what_it_is(shared: Gateway) -> None:
    before = shared.settled_rows()
    answer = shared.client().chat.completions.create(model="demo", messages=HELLO)
    assert (answer.choices[0].message.content or "").startswith("I am the demo provider. No language model read")
    again = shared.client().chat.completions.create(model="demo", messages=HELLO)
    assert answer.usage == again.usage
    wait_for(lambda: len(shared.rows()) >= before + 2, "two rows")
    assert shared.rows()[-1]["provider"] == "demo"


# --- is the mock like the vendor? ----------------------------------------------------------------


@pytest.fixture(scope="module")
def direct(vendor: Mock) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=vendor.url, api_key=API_KEY, max_retries=0)


def test_the_vendors_own_sdk_reads_the_mock(direct: anthropic.Anthropic) -> None:
    whole = direct.messages.create(model="mock", max_tokens=50, messages=HELLO)
    with direct.messages.stream(model="mock", max_tokens=50, messages=HELLO) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        block = message.content[0]
        assert block.type == "text" and block.text == ECHO
        assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 3, 5)
    tool: Any = {"name": "weather", "input_schema": {"type": "object"}}
    with direct.messages.stream(model="mock+tool", max_tokens=50, messages=HELLO, tools=[tool]) as stream:
        use = stream.get_final_message().content[0]
    assert use.type == "tool_use" and use.input == {"place": "Zürich", "days": 3}


@pytest.mark.parametrize(
    ("model", "exception"),
    [("mock+401", anthropic.AuthenticationError), ("mock+429", anthropic.RateLimitError),
     ("mock+500", anthropic.InternalServerError), ("mock+529", anthropic.APIStatusError)],
)  # fmt: skip
def test_the_vendors_own_sdk_understands_the_mocks_errors(direct: anthropic.Anthropic, model: str, exception: type[Exception]) -> None:
    with pytest.raises(exception):
        direct.messages.create(model=model, max_tokens=50, messages=HELLO)


def test_the_mock_refuses_what_the_vendor_refuses(direct: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="Extra inputs"):
        direct.messages.create(model="mock", max_tokens=5, messages=HELLO, extra_body={"logit_bias": {}})
    with pytest.raises(anthropic.BadRequestError, match="Extra inputs"):
        direct.messages.create(model="mock", max_tokens=5, messages=HELLO, extra_body={"temperature": 1})
    call: Any = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "x", "input": {}}]}
    with pytest.raises(anthropic.BadRequestError, match="tool_use"):
        direct.messages.create(model="mock", max_tokens=5, messages=[*HELLO, call, *HELLO])
    with pytest.raises(anthropic.AuthenticationError):
        direct.with_options(api_key="wrong").messages.create(model="mock", max_tokens=5, messages=HELLO)


def test_what_we_send_has_the_types_of_the_vendors_sdk() -> None:
    body = {
        "model": "sonnet",
        "stop": ["END"],
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get.weather"}},
        "parallel_tool_calls": False,
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]},
            {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get.weather", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "Sunny"},
        ],
    }
    built = build_messages_request(parse_chat_request(body), "claude-x", 100).body
    checked = TypeAdapter(MessageCreateParamsStreaming).validate_python(built)
    assert set(checked) == set(built)

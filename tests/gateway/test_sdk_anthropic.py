"""The real Anthropic SDK against the gateway, in front of a vendor of either kind."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from gateway_support import TOKEN, Gateway, Mock
from pydantic import BaseModel

HELLO: Any = [{"role": "user", "content": "Hello, dear friends"}]
ECHO = "You said: Hello, dear friends"
WEATHER: Any = {
    "name": "weather",
    "description": "Weather of a place",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}},
}
PROXY_TOKEN = "proxy-token-0123456789abcdef"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
PDF = "JVBERi0xLjcKJWhlbGxvCg=="

# The same scenarios at both vendors: x-… is Anthropic's own API, y-… an OpenAI-compatible server.
BOTH = pytest.mark.parametrize("kind", ["x", "y"], ids=["anthropic", "openai"])


def client_of(gateway: Gateway, **options: Any) -> anthropic.Anthropic:
    """Retries are off: a test must see what the gateway answered."""
    return anthropic.Anthropic(base_url=gateway.url, **{"api_key": TOKEN, "max_retries": 0, "timeout": 40, **options})


@pytest.fixture(scope="module")
def client(shared: Gateway) -> anthropic.Anthropic:
    return client_of(shared)


def create(client: anthropic.Anthropic, model: str, messages: Any = HELLO, **options: Any) -> Any:
    return client.messages.create(model=model, messages=messages, **{"max_tokens": 500, **options})


def both_ways(client: anthropic.Anthropic, model: str, messages: Any = HELLO, **options: Any) -> Iterator[Any]:
    """The whole message, and the one that the SDK makes of the stream."""
    yield create(client, model, messages, **options)
    with client.messages.stream(model=model, messages=messages, **{"max_tokens": 500, **options}) as stream:
        yield stream.get_final_message()


@BOTH
def test_t47_t48_chat_whole_and_streamed(client: anthropic.Anthropic, kind: str) -> None:
    for message in both_ways(client, f"{kind}-normal", system="Be kind."):
        assert [(block.type, block.text) for block in message.content] == [("text", ECHO)]
        assert (message.role, message.model, message.stop_reason) == ("assistant", f"{kind}-normal", "end_turn")
        # Two words of the system prompt and three of the question, also where the vendor counts at the end only.
        assert (message.usage.input_tokens, message.usage.output_tokens) == (5, 5)
        assert message.id.startswith("msg_")


@BOTH
def test_the_stream_has_the_vendors_order(client: anthropic.Anthropic, kind: str) -> None:
    events = list(create(client, f"{kind}-normal", stream=True))
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 5,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    # What the gateway sent is what these types are declared to hold.
    for event in events:
        type(event).model_validate(event.model_dump())
    assert events[0].message.usage.output_tokens >= 0
    assert events[-2].usage.input_tokens == 3


@BOTH
@pytest.mark.parametrize("scenario", ["odd-sse", "gzip", "json", "pings"])
def test_streams_in_odd_clothes(client: anthropic.Anthropic, kind: str, scenario: str) -> None:
    messages: Any = [{"role": "user", "content": "Grüße an alle 🔥"}]
    with client.messages.stream(model=f"{kind}-{scenario}", max_tokens=50, messages=messages) as stream:
        assert "".join(stream.text_stream) == "You said: Grüße an alle 🔥"


@BOTH
def test_t50_tools_there_and_back(client: anthropic.Anthropic, shared: Gateway, kind: str) -> None:
    for message in both_ways(client, f"{kind}-tool", tools=[WEATHER], tool_choice={"type": "any", "disable_parallel_tool_use": True}):
        use = message.content[0]
        assert message.stop_reason == "tool_use"
        assert (use.type, use.name, use.input) == ("tool_use", "weather", {"place": "Zürich", "days": 3})
        result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "Sunny"}
        history: Any = [*HELLO, message.to_param(), {"role": "user", "content": [result, {"type": "text", "text": "And?"}]}]
        again = create(client, f"{kind}-normal", history, tools=[WEATHER])
        assert again.content[0].text == "You said: And?"
    empty = create(client, f"{kind}-tool-empty", tools=[WEATHER])
    assert empty.content[0].input == {}


def test_t51_two_calls_that_the_vendor_sends_in_turns(client: anthropic.Anthropic) -> None:
    for message in both_ways(client, "y-tools", tools=[WEATHER]):
        assert [block.input for block in message.content] == [{"place": "Zürich", "days": 3}] * 2
        assert len({block.id for block in message.content}) == 2


@BOTH
def test_images_and_documents(client: anthropic.Anthropic, vendor: Mock, second_vendor: Mock, kind: str) -> None:
    content: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        {"type": "document", "title": "a.pdf", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A tale."}},
    ]
    mock = vendor if kind == "x" else second_vendor
    before = mock.asked()
    answer = create(client, f"{kind}-normal", [{"role": "user", "content": content}])
    assert answer.content[0].text == "You said: A tale."
    expected = ["text", "image", "document", "text"] if kind == "x" else ["text", "image_url", "file", "text"]
    assert mock.next_record(before)["blocks"] == [expected]


class Echo(BaseModel):
    said: str


@BOTH
def test_structured_output(client: anthropic.Anthropic, kind: str) -> None:
    parsed = client.messages.parse(model=f"{kind}-normal", max_tokens=500, messages=HELLO, output_format=Echo)
    assert parsed.parsed_output == Echo(said="Hello, dear friends")
    with client.messages.stream(model=f"{kind}-normal", max_tokens=500, messages=HELLO, output_format=Echo) as stream:
        assert stream.get_final_message().parsed_output == Echo(said="Hello, dear friends")


def test_thinking_comes_back_signed_and_is_taken_back(client: anthropic.Anthropic, vendor: Mock) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    for message in both_ways(client, "x-thinking", max_tokens=2000, thinking=thinking):
        first = message.content[0]
        assert (first.type, first.thinking, first.signature) == ("thinking", "Let me think. ", "c2lnbmVk")
        before = vendor.asked()
        # The mock refuses a signature that is not its own.
        create(client, "x-normal", [*HELLO, message.to_param(), *HELLO], max_tokens=2000, thinking=thinking)
        assert vendor.next_record(before)["blocks"][1] == ["thinking", "text"]


def test_thinking_of_an_openai_vendor_has_no_signature(client: anthropic.Anthropic) -> None:
    for message in both_ways(client, "y-thinking"):
        assert [block.type for block in message.content] == ["thinking", "text"]
        assert message.content[0].thinking == "Let me think. "
        assert message.content[0].signature == ""
        # It goes back without harm: nobody could take an unsigned one.
        create(client, "x-normal", [*HELLO, message.to_param(), *HELLO])
        create(client, "y-normal", [*HELLO, message.to_param(), *HELLO])


@BOTH
def test_cached_tokens(client: anthropic.Anthropic, kind: str) -> None:
    for message in both_ways(client, f"{kind}-cache"):
        usage = message.usage
        assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (3, 1000, 200)
        assert usage.output_tokens == 5


@BOTH
def test_stop_reasons(client: anthropic.Anthropic, kind: str) -> None:
    for scenario, reason in (("max-tokens", "max_tokens"), ("unknown-stop", "end_turn")):
        assert [message.stop_reason for message in both_ways(client, f"{kind}-{scenario}")] == [reason, reason]
    refused = "x-refusal" if kind == "x" else "y-content-filter"
    assert create(client, refused).stop_reason == "refusal"


def test_the_stop_sequence_that_ended_it(client: anthropic.Anthropic) -> None:
    for message in both_ways(client, "sonnet", stop_sequences=["dear"]):
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "dear")
        assert message.content[0].text == "You said: Hello, "


def test_parameters_reach_the_vendor_and_metadata_does_not(client: anthropic.Anthropic, shared: Gateway, vendor: Mock) -> None:
    before = vendor.asked()
    response = client.messages.with_raw_response.create(
        model="sonnet",
        max_tokens=100_000,
        messages=HELLO,
        metadata={"user_id": "ann@example.org"},
        stop_sequences=["END"],
        extra_body={"temperature": 0.5, "top_k": 3, "secret_field": 1},
    )
    record = vendor.next_record(before)
    assert record["keys"] == ["max_tokens", "messages", "model", "stop_sequences", "stream", "temperature", "top_k"]
    assert record["max_tokens"] == 64_000
    assert response.headers["x-hearth-ignored"] == "metadata,unknown-fields"
    assert response.headers["x-hearth-adjusted"] == "max_tokens"
    assert response.headers["x-hearth-provider"] == "anthropic"
    assert response.headers["x-hearth-model"] == "claude-sonnet-4-5-20250929"


def test_the_request_id_is_where_the_sdk_looks_for_it(client: anthropic.Anthropic, shared: Gateway) -> None:
    before = shared.settled_rows()
    message = create(client, "sonnet")
    assert message._request_id == message.id.removeprefix("msg_")
    shared.settled_rows()
    assert shared.rows()[before]["request_id"] == message._request_id
    with pytest.raises(anthropic.NotFoundError) as caught:
        create(client, "no-such-model")
    assert caught.value.request_id
    assert isinstance(caught.value.body, dict) and caught.value.body["request_id"] == caught.value.request_id


def test_t52_failover_before_the_first_word(client: anthropic.Anthropic) -> None:
    """The second provider, of the other kind, takes over on this route too."""
    for scenario in ("500", "529", "429", "401", "error-before", "overloaded", "garbage"):
        for message in both_ways(client, f"f-{scenario}"):
            assert message.content[0].text == ECHO, scenario
            assert message.usage.input_tokens == 3, scenario
    response = client.messages.with_raw_response.create(model="f-500", max_tokens=50, messages=HELLO)
    assert response.headers["x-hearth-provider"] == "litellm"


def test_t53_both_formats_are_metered_alike(client: anthropic.Anthropic, shared: Gateway) -> None:
    """The same question costs the same, whichever API it came by."""
    same = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "output_tokens", "outcome", "cost_nano")
    before = shared.settled_rows()
    create(client, "x-cache")
    shared.client().chat.completions.create(model="x-cache", messages=HELLO)
    shared.settled_rows()
    messages_row, chat_row = shared.rows()[before:]
    assert [messages_row[name] for name in same] == [chat_row[name] for name in same]
    assert [messages_row[name] for name in same[:6]] == [3, 1000, 200, 50, 5, "ok"]


def test_models(client: anthropic.Anthropic, shared: Gateway) -> None:
    models = {model.id: model for model in client.models.list()}
    assert set(models) == set(shared.config["models"])
    sonnet = client.models.retrieve("sonnet")
    assert sonnet == models["sonnet"]
    assert (sonnet.type, sonnet.display_name, sonnet.lifecycle, sonnet.max_tokens) == ("model", "sonnet", "active", 64_000)
    type(sonnet).model_validate(json.loads(sonnet.to_json()))
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("embed")  # known, but not for messages


ERRORS = [
    ("no-such-model", anthropic.NotFoundError, 404, "not_found_error"),
    ("401", anthropic.InternalServerError, 502, "api_error"),
    ("403", anthropic.InternalServerError, 502, "api_error"),
    ("404", anthropic.InternalServerError, 502, "api_error"),
    ("400", anthropic.BadRequestError, 400, "invalid_request_error"),
    ("413", anthropic.ContentTooLargeError, 413, "request_too_large"),
    ("429", anthropic.RateLimitError, 429, "rate_limit_error"),
    ("500", anthropic.InternalServerError, 502, "api_error"),
    ("529", anthropic.ServiceUnavailableError, 503, "overloaded_error"),
    ("error-before", anthropic.InternalServerError, 502, "api_error"),
    ("overloaded", anthropic.ServiceUnavailableError, 503, "overloaded_error"),
    ("quote", anthropic.BadRequestError, 400, "invalid_request_error"),
    ("silent", anthropic.GatewayTimeoutError, 504, "timeout_error"),
]


@BOTH
@pytest.mark.parametrize(("scenario", "exception", "status", "type_"), ERRORS, ids=[case[0] for case in ERRORS])
def test_errors_raise_the_right_class(
    client: anthropic.Anthropic,
    shared: Gateway,
    kind: str,
    scenario: str,
    exception: type[anthropic.APIStatusError],
    status: int,
    type_: str,
) -> None:
    # The stream, because there an error could hide behind a 200; the silent one gets its headers late.
    shared.breakers_over()
    with pytest.raises(exception) as caught:
        create(client, f"{kind}-{scenario}", stream=scenario != "silent")
    error = caught.value
    assert (error.status_code, error.type) == (status, type_)
    assert error.api_message and error.request_id
    shared.breakers_over()
    with pytest.raises(exception):
        create(client, f"{kind}-{scenario}")


@BOTH
def test_retry_after_is_passed_on(client: anthropic.Anthropic, shared: Gateway, kind: str) -> None:
    shared.breakers_over()
    with pytest.raises(anthropic.RateLimitError) as caught:
        create(client, f"{kind}-429")
    assert caught.value.response.headers["retry-after"] == "7"


def test_wrong_requests_and_tokens(client: anthropic.Anthropic, shared: Gateway) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        create(client, "sonnet", [])
    assert caught.value.type == "invalid_request_error" and (caught.value.api_message or "").startswith("messages: ")
    with pytest.raises(anthropic.AuthenticationError) as refused:
        create(client_of(shared, api_key="wrong-token-wrong-token"), "sonnet")
    assert refused.value.type == "authentication_error"
    with pytest.raises(anthropic.AuthenticationError):
        client_of(shared, api_key="wrong-token-wrong-token").models.list()
    with pytest.raises(anthropic.BadRequestError):
        create(client_of(shared, default_headers={"x-api-key": "something"}), "sonnet")
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="sonnet", messages=HELLO)


def test_the_gateways_own_refusals_raise_the_right_class_in_both_sdks(own: Callable[..., Gateway]) -> None:
    limits = {"program": {"requests_per_minute": 4}}
    gateway = own(start=False, server={"max_body_bytes": 5000}, limits=limits, tokens={"proxy": ["proxy"]})
    (gateway.tokens / "proxy").write_text(PROXY_TOKEN)
    gateway.start()
    native, openai_client = client_of(gateway), gateway.client()
    long: Any = [{"role": "user", "content": "x" * 6000}]
    with pytest.raises(anthropic.ContentTooLargeError):
        create(native, "sonnet", long)
    with pytest.raises(openai.APIStatusError) as too_large:
        openai_client.chat.completions.create(model="sonnet", messages=long)
    assert too_large.value.status_code == 413
    for _ in range(2):
        create(native, "sonnet")
        openai_client.chat.completions.create(model="sonnet", messages=HELLO)
    # Both routes count towards one limit.
    with pytest.raises(anthropic.RateLimitError) as limited:
        create(native, "sonnet")
    assert limited.value.type == "rate_limit_error"
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60
    with pytest.raises(openai.RateLimitError) as limited_too:
        openai_client.chat.completions.create(model="sonnet", messages=HELLO)
    assert 1 <= int(limited_too.value.response.headers["retry-after"]) <= 60
    # A person's credential from anywhere but the house's own page.
    credential = base64.b64encode(f"ann@example.org:{PROXY_TOKEN}".encode()).decode()
    person = {"Authorization": f"Basic {credential}", "Origin": "https://elsewhere.example"}
    with pytest.raises(anthropic.PermissionDeniedError) as denied:
        create(client_of(gateway, default_headers=person), "sonnet")
    assert denied.value.type == "permission_error"
    with pytest.raises(openai.PermissionDeniedError):
        gateway.client(default_headers=person).chat.completions.create(model="sonnet", messages=HELLO)


@BOTH
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
def test_a_broken_stream_raises_and_never_ends_well(client: anthropic.Anthropic, kind: str, scenario: str, words: str) -> None:
    text, types = "", []
    with pytest.raises(anthropic.APIStatusError, match=words) as caught:
        for event in create(client, f"{kind}-{scenario}", stream=True):
            types.append(event.type)
            if event.type == "content_block_delta":
                text += event.delta.text
    assert text == "You said:"
    assert not {"message_delta", "message_stop"} & set(types)
    assert isinstance(caught.value.body, dict) and caught.value.body["type"] == "error"
    assert caught.value.body["request_id"] == caught.value.request_id


def test_heartbeats_are_pings(shared: Gateway) -> None:
    """The SDK hides pings, so this one looks at the wire. Before message_start comments stand in for them."""
    body = {"model": "x-silent-after", "max_tokens": 50, "messages": HELLO, "stream": True}
    with httpx2.stream("POST", f"{shared.url}/v1/messages", json=body, headers={"x-api-key": TOKEN}, timeout=20) as response:
        text = response.read().decode()
    assert 'event: ping\ndata: {"type":"ping"}\n\n' in text
    assert text.index("event: message_start") < text.index("event: ping") < text.index("event: error")
    assert text.rstrip().rpartition("\n\n")[2].startswith("event: error\ndata: ")

"""An OpenAI-compatible provider with the real OpenAI SDK in front and a mock vendor behind, over real HTTP.

A third provider needs configuration only: the tests at the end add a server without a key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from gateway_support import API_KEY, ROOT, SECOND_API_KEY, SECOND_MOCK, Gateway, Mock

from hearth_gateway.providers.anthropic import API_VERSION

HELLO: Any = [{"role": "user", "content": "Grüße an alle 🔥"}]
ECHO = "You said: Grüße an alle 🔥"
WEATHER: Any = {"type": "function", "function": {"name": "get.weather", "parameters": {"type": "object"}}}
ARGUMENTS = {"place": "Zürich", "days": 3}


def streamed(gateway: Gateway, scenario: str, **fields: Any) -> list[Any]:
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return list(gateway.client().chat.completions.create(model=f"y-{scenario}", messages=HELLO, **fields))


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("scenario", ["normal", "json", "gzip", "odd-sse", "no-done", "usage-on-finish"])
def test_answers_in_odd_clothes(shared: Gateway, scenario: str) -> None:
    chunks = streamed(shared, scenario)
    assert text_of(chunks) == ECHO
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (4, 6)
    whole = shared.client().chat.completions.create(model=f"y-{scenario}", messages=HELLO)
    assert whole.choices[0].message.content == ECHO and whole.model == f"y-{scenario}"
    assert whole.usage is not None and whole.usage.total_tokens == 10


def test_what_the_vendor_is_asked_for(shared: Gateway, second_vendor: Mock) -> None:
    seen = second_vendor.asked()
    shared.client().chat.completions.create(
        model="y-normal", messages=HELLO, max_tokens=9000, temperature=1.5, stop="END", seed=5, user="ann@example.org"
    )
    record = second_vendor.next_record(seen)
    assert record["keys"] == ["max_tokens", "messages", "model", "stop", "stream", "stream_options", "temperature"]
    assert record["stream"] is True and record["max_tokens"] == 1000, "the served model's ceiling"
    assert record["user"] is None, "a program asks for nobody"


@pytest.mark.parametrize(("scenario", "names"), [("tool", 1), ("tools", 2)])
def test_tools(shared: Gateway, scenario: str, names: int) -> None:
    chunks = streamed(shared, scenario, tools=[WEATHER])
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            if call.id:
                assert call.function.name == "get.weather" and call.index == len(calls)
            calls.setdefault(call.index, []).append(call.function.arguments)
    assert [json.loads("".join(pieces)) for pieces in calls.values()] == [ARGUMENTS] * names
    whole = shared.client().chat.completions.create(model=f"y-{scenario}", messages=HELLO, tools=[WEATHER])
    message = whole.choices[0].message
    assert message.content is None and whole.choices[0].finish_reason == "tool_calls"
    back = [
        *HELLO,
        message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in message.tool_calls or []),
    ]
    answer = shared.client().chat.completions.create(model="y-normal", messages=back, tools=[WEATHER])
    assert answer.choices[0].message.content == ECHO


def test_a_tool_without_arguments_gets_an_empty_object(shared: Gateway) -> None:
    whole = shared.client().chat.completions.create(model="y-tool-empty", messages=HELLO, tools=[WEATHER])
    assert whole.choices[0].message.tool_calls is not None
    assert whole.choices[0].message.tool_calls[0].function.arguments == "{}"  # type: ignore[union-attr]


def test_t32_reasoning_is_no_content(shared: Gateway) -> None:
    whole = shared.client().chat.completions.create(model="y-thinking", messages=HELLO, reasoning_effort="low")
    assert whole.choices[0].message.content == ECHO
    assert whole.choices[0].message.reasoning_content == "Let me think. "  # type: ignore[attr-defined]


def test_cached_tokens_are_counted_apart(shared: Gateway) -> None:
    before = shared.settled_rows()
    usage = streamed(shared, "cache")[-1].usage
    assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (1204, 1000)
    shared.settled_rows()
    row = shared.rows()[before]
    assert (row["input_tokens"], row["cache_read_tokens"], row["cache_write_tokens"], row["output_tokens"]) == (4, 1000, 200, 6)


def test_a_vendor_that_counts_nothing_is_estimated_and_not_free(shared: Gateway) -> None:
    before = shared.settled_rows()
    assert text_of(streamed(shared, "no-usage")) == ECHO
    shared.settled_rows()
    row = shared.rows()[before]
    assert (row["outcome"], row["state"]) == ("ok", "estimated")
    assert row["input_tokens"] > 0 and row["output_tokens"] > 0


@pytest.mark.parametrize(
    ("scenario", "reason"), [("max-tokens", "length"), ("content-filter", "content_filter"), ("unknown-stop", "stop")]
)
def test_finish_reasons(shared: Gateway, scenario: str, reason: str) -> None:
    before = shared.metric("hearth_unknown_stop_reasons_total")
    assert streamed(shared, scenario)[-2].choices[0].finish_reason == reason
    assert shared.metric("hearth_unknown_stop_reasons_total") - before == (scenario == "unknown-stop")


@pytest.mark.parametrize("scenario", ["cut", "error-after", "eof", "garbage-after", "silent-after"])
def test_t39_a_broken_stream_never_ends_well(shared: Gateway, scenario: str) -> None:
    pieces: list[str] = []
    reasons: list[str] = []
    with pytest.raises(openai.APIError):
        for chunk in shared.client().chat.completions.create(model=f"y-{scenario}", messages=HELLO, stream=True):
            pieces.append(chunk.choices[0].delta.content or "")
            reasons += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
    assert "".join(pieces) == "You said:" and not reasons
    with pytest.raises(openai.InternalServerError):
        shared.client().chat.completions.create(model=f"y-{scenario}", messages=HELLO)


@pytest.fixture
def open_vendor(tmp_path: Path) -> Iterator[Mock]:
    """A model server in the house: no key."""
    directory = tmp_path / "open-vendor"
    directory.mkdir()
    mock = Mock(directory, program=SECOND_MOCK, api_key="")
    yield mock
    mock.stop()


def test_a_third_provider_by_configuration_alone(own: Callable[..., Gateway], second_vendor: Mock, open_vendor: Mock) -> None:
    gateway = own(start=False, second_url=second_vendor.url)
    gateway.config["providers"].append(
        {"name": "house", "kind": "openai", "base_url": open_vendor.url, "litellm_extensions": False,
         "max_tokens_field": "max_completion_tokens"}
    )  # fmt: skip
    gateway.config["models"]["sonnet"] = [
        {"provider": "anthropic", "model": "mock+529", "max_output_tokens": 1000},
        {"provider": "litellm", "model": "mock+500", "max_output_tokens": 1000},
        {"provider": "house", "model": "llama", "max_output_tokens": 500, "sampling": False, "reasoning": "none"},
    ]
    gateway.save()
    gateway.start()
    raw = gateway.client().chat.completions.with_raw_response.create(
        model="sonnet", messages=HELLO, temperature=0.5, reasoning_effort="high", max_tokens=900
    )
    assert raw.parse().choices[0].message.content == ECHO
    assert raw.headers["x-hearth-provider"] == "house"
    assert raw.headers["x-hearth-failover"] == "anthropic=upstream_overloaded,litellm=upstream_error,litellm=upstream_error"
    assert raw.headers["x-hearth-adjusted"] == "max_tokens,temperature,reasoning_effort"
    record = open_vendor.next_record(0)
    assert record["keys"] == ["max_completion_tokens", "messages", "model", "stream", "stream_options"]
    assert "authorization" not in record["headers"], "the key of one provider is not for another"
    assert SECOND_API_KEY not in json.dumps(gateway.log_lines)


def test_the_mocks_take_what_the_goldens_say(second_vendor: Mock, vendor: Mock) -> None:
    """The mock vendors refuse what they do not know: so the goldens and they check each other."""
    checked = 0
    first = anthropic.Anthropic(base_url=vendor.url, api_key=API_KEY, max_retries=0, default_headers={"anthropic-version": API_VERSION})
    second = openai.OpenAI(base_url=f"{second_vendor.url}/v1", api_key=SECOND_API_KEY, max_retries=0)
    for path in sorted((ROOT / "files" / "gateway" / "tests" / "fixtures" / "requests").glob("T*.*.json")):
        body = json.loads(path.read_text()).get("body")
        if body is None:
            continue
        body = {key: value for key, value in body.items() if key not in ("stream", "stream_options")}
        if ".anthropic" in path.name:
            assert first.post("/v1/messages", body=body, cast_to=object), path.name
        elif ".openai" in path.name:
            assert second.post("/chat/completions", body=body, cast_to=object), path.name
        checked += 1
    assert checked > 60

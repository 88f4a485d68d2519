"""T22 to T39: what the vendor answers, as the client gets it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.translate import openai_upstream_response
from hearth_gateway.translate.anthropic_request import build_messages_request
from hearth_gateway.translate.anthropic_response import MessageReader, error_from_status, finish_reason
from hearth_gateway.translate.endpoints import parse_embeddings, read_document
from hearth_gateway.translate.events import (
    ALIVE,
    BEGUN,
    End,
    Event,
    Text,
    Thinking,
    ThinkingEnd,
    ToolArguments,
    ToolStart,
    Usage,
    is_content,
)
from hearth_gateway.translate.openai_request import parse_chat_request
from hearth_gateway.translate.openai_response import ChunkEncoder, Collector, encode_error, usage_object
from hearth_gateway.translate.vendor_fields import MAX_COUNT

Json = dict[str, Any]


def start(**usage: Any) -> Json:
    return {"type": "message_start", "message": {"usage": usage}}


def block(index: int, **content: Any) -> Json:
    return {"type": "content_block_start", "index": index, "content_block": content}


def delta(index: int, **fields: Any) -> Json:
    return {"type": "content_block_delta", "index": index, "delta": fields}


def stop(index: int) -> Json:
    return {"type": "content_block_stop", "index": index}


def end(reason: str | None = "end_turn", **usage: Any) -> list[Json]:
    return [
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage or None},
        {"type": "message_stop"},
    ]


TEXT_STREAM = [
    start(input_tokens=10, output_tokens=1),
    block(0, type="text", text=""),
    {"type": "ping"},
    delta(0, type="text_delta", text="Hel"),
    delta(0, type="text_delta", text="lo"),
    stop(0),
    block(1, type="text", text=" and"),
    delta(1, type="text_delta", text=" more"),
    stop(1),
    *end(output_tokens=7),
]
TOOL_STREAM = [
    start(input_tokens=10),
    block(0, type="thinking", thinking=""),
    delta(0, type="thinking_delta", thinking="Hm."),
    delta(0, type="signature_delta", signature="c2ln"),
    stop(0),
    block(1, type="server_tool_use", id="s1", name="web_search", input={}),
    delta(1, type="input_json_delta", partial_json='{"query": "x"}'),
    stop(1),
    block(2, type="tool_use", id="t1", name="weather_", input={}),
    delta(2, type="input_json_delta", partial_json=""),
    delta(2, type="input_json_delta", partial_json='{"place": '),
    delta(2, type="input_json_delta", partial_json='"Bern"}'),
    stop(2),
    block(3, type="tool_use", id="t2", name="now", input={}),
    stop(3),
    *end("tool_use", output_tokens=20),
]


def read(stream: list[Json]) -> list[Event]:
    reader = MessageReader({"weather_": "weather."})
    return [event for item in stream for event in reader.read(json.dumps(item).encode())]


def chunks(stream: list[Json], include_usage: bool = False) -> list[Any]:
    encoder = ChunkEncoder("chatcmpl-1", 5, "sonnet", include_usage)
    data = b"".join(encoder.encode(event) for event in read(stream))
    pieces = data.decode().split("\n\n")
    assert pieces.pop() == ""
    assert all(piece.startswith("data: ") for piece in pieces)
    return [json.loads(piece[6:]) if piece != "data: [DONE]" else "[DONE]" for piece in pieces]


def whole(stream: list[Json]) -> Json:
    collector = Collector()
    for event in read(stream):
        collector.add(event)
    return collector.completion("chatcmpl-1", 5, "sonnet")


def test_t22_all_text_blocks_belong_to_the_answer() -> None:
    assert whole(TEXT_STREAM)["choices"][0]["message"]["content"] == "Hello and more"
    message = whole(TOOL_STREAM)["choices"][0]["message"]
    assert message["content"] is None


def test_t23_t32_thinking_is_not_content() -> None:
    assert whole(TOOL_STREAM)["choices"][0]["message"]["reasoning_content"] == "Hm."
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(TOOL_STREAM)[:-1]]
    assert {"reasoning_content": "Hm."} in deltas
    assert not any(item.get("content") for item in deltas)


@pytest.mark.parametrize(
    ("vendor", "ours"),
    [
        ("end_turn", "stop"), ("stop_sequence", "stop"), ("pause_turn", "stop"), ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"), ("tool_use", "tool_calls"), ("refusal", "content_filter"),
        ("something_new", "stop"), (None, "stop"),
    ],
)  # fmt: skip
def test_t24_stop_reasons(vendor: str | None, ours: str) -> None:
    assert finish_reason(vendor) == ours


def test_t25_prompt_tokens_hold_the_cached_ones() -> None:
    usage = Usage(input=10, cache_read=1000, cache_write=200, output=7)
    assert usage_object(usage) == {
        "prompt_tokens": 1210,
        "completion_tokens": 7,
        "total_tokens": 1217,
        "prompt_tokens_details": {"cached_tokens": 1000},
    }


def test_t27_names_and_times_are_the_same_in_every_chunk() -> None:
    for chunk in chunks(TEXT_STREAM)[:-1]:
        assert (chunk["id"], chunk["object"], chunk["created"], chunk["model"]) == (
            "chatcmpl-1", "chat.completion.chunk", 5, "sonnet",
        )  # fmt: skip


def test_t28_first_the_role_and_tools_are_counted_as_tools() -> None:
    got = [chunk["choices"][0]["delta"] for chunk in chunks(TOOL_STREAM)[:-1]]
    assert got[0] == {"role": "assistant", "content": ""}
    calls = [item["tool_calls"][0] for item in got if "tool_calls" in item]
    assert calls == [
        {"index": 0, "id": "t1", "type": "function", "function": {"name": "weather.", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"place": '}},
        {"index": 0, "function": {"arguments": '"Bern"}'}},
        {"index": 1, "id": "t2", "type": "function", "function": {"name": "now", "arguments": ""}},
        {"index": 1, "function": {"arguments": "{}"}},
    ]


def test_t29_t30_t31_arguments_are_json_and_only_of_calls_for_the_caller() -> None:
    calls = whole(TOOL_STREAM)["choices"][0]["message"]["tool_calls"]
    assert [(item["function"]["name"], item["function"]["arguments"]) for item in calls] == [
        ("weather.", '{"place": "Bern"}'),
        ("now", "{}"),
    ]


def usages(stream: list[Json]) -> list[Usage]:
    return [event for event in read(stream) if isinstance(event, Usage)]


def test_t33_usage_is_set_where_present_and_never_added() -> None:
    first = start(input_tokens=10, cache_read_input_tokens=5, output_tokens=1)
    assert usages([first, *end(output_tokens=7)])[-1] == Usage(input=10, cache_read=5, output=7)
    # An explicit zero is a value, null and absence are none.
    last = end(input_tokens=0, cache_read_input_tokens=None, output_tokens=7)
    assert usages([first, *last])[-1] == Usage(input=0, cache_read=5, output=7)
    creation = {"ephemeral_5m_input_tokens": 150, "ephemeral_1h_input_tokens": 50}
    cached = start(input_tokens=1, cache_creation_input_tokens=200, cache_creation=creation)
    assert usages([cached])[-1] == Usage(input=1, cache_write=200, cache_write_1h=50)


@pytest.mark.parametrize("number", [3_000_000_000, 2**63, 2**64 - 1, 10**30])
def test_a_count_beyond_all_measure_loses_nobody_the_answer(number: int) -> None:
    """SQLite holds 64 bits and PostgreSQL's columns 32; from 2**64 on JSON's numbers come as floats."""
    assert usages([start(input_tokens=number), *end(output_tokens=number)])[-1] == Usage(input=MAX_COUNT, output=MAX_COUNT)
    request = parse_embeddings({"model": "embed", "input": "x"})
    body = {"data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": number}}
    assert read_document(request, json.dumps(body).encode())[0] == Usage(input=MAX_COUNT)


def test_t35_usage_comes_last_if_asked_for_and_else_not_at_all() -> None:
    got = chunks(TEXT_STREAM, include_usage=True)
    assert got[-1] == "[DONE]"
    assert got[-2]["choices"] == [] and got[-2]["usage"]["completion_tokens"] == 7
    assert got[-3]["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["usage"] is None for chunk in got[:-2])
    assert all("usage" not in chunk for chunk in chunks(TEXT_STREAM)[:-1])


def test_t36_one_finish_reason_one_done_nothing_after() -> None:
    for stream in (TEXT_STREAM, TOOL_STREAM):
        got = chunks(stream)
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in got[:-1]]
        assert reasons[:-1] == [None] * (len(reasons) - 1) and reasons[-1]
        assert got.count("[DONE]") == 1 and got[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("vendor", "kind"),
    [
        ("overloaded_error", Kind.UPSTREAM_OVERLOADED), ("rate_limit_error", Kind.UPSTREAM_RATE_LIMITED),
        ("api_error", Kind.UPSTREAM_ERROR), ("authentication_error", Kind.UPSTREAM_AUTH),
        ("something_new", Kind.UPSTREAM_ERROR),
    ],
)  # fmt: skip
def test_t37_error_events_are_told_apart(vendor: str, kind: Kind) -> None:
    with pytest.raises(GatewayError) as caught:
        read([{"type": "error", "error": {"type": vendor, "message": "secret words"}}])
    assert caught.value.kind is kind
    assert "secret" not in caught.value.message


def test_t38_an_error_after_content_is_an_error_object() -> None:
    error = GatewayError(Kind.UPSTREAM_INTERRUPTED, "It broke.")
    assert encode_error(error) == (
        b'data: {"error":{"message":"It broke.","type":"server_error","param":null,"code":"upstream_interrupted"}}\n\n'
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b'{"type"',
        b'{"type":"content_block_delta"}',
        b'{"type":"content_block_delta","delta":{"type":"text_delta","text":5}}',
        b'{"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":{}}}',
        b'{"type":"content_block_start","content_block":{"type":"text","text":["x"]}}',
        b'{"type":"content_block_start","content_block":{"type":"thinking","thinking":1}}',
        b'{"type":"content_block_start","content_block":{"type":"tool_use","id":7,"name":"f"}}',
        b'{"type":"content_block_start","content_block":{"type":"tool_use","id":"t","name":["f"]}}',
        b'{"type":"message_start","message":{"usage":{"input_tokens":"many"}}}',
        b'{"type":"message_start","message":{"usage":{"input_tokens":-1}}}',
        b'{"type":"message_delta"}',
        b'{"type":"error"}',
    ],
)
def test_what_is_no_event_is_a_fault_and_is_not_quoted(data: bytes) -> None:
    with pytest.raises(GatewayError) as caught:
        MessageReader({}).read(data)
    assert caught.value.kind is Kind.UPSTREAM_PROTOCOL
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_events_nobody_has_heard_of_are_ignored() -> None:
    assert whole([{"type": "new_thing"}, block(9, type="new_block"), delta(9, type="new_delta"), *TEXT_STREAM])


def test_t46_a_document_instead_of_a_stream() -> None:
    message = {
        "type": "message",
        "content": [
            {"type": "thinking", "thinking": "Hm."},
            {"type": "text", "text": "Hello"},
            {"type": "tool_use", "id": "t1", "name": "weather_", "input": {"place": "Bern"}},
            {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    events = MessageReader({"weather_": "weather."}).read_whole(json.dumps(message).encode())
    seen = [event for event in events if isinstance(event, Text | Thinking | ToolStart | ToolArguments | End)]
    assert seen == [
        Thinking("Hm."),
        Text("Hello"),
        ToolStart(0, "t1", "weather."),
        ToolArguments(0, '{"place":"Bern"}'),
        ToolStart(1, "t2", "now"),
        ToolArguments(1, "{}"),
        End("tool_calls"),
    ]
    with pytest.raises(GatewayError):
        MessageReader({}).read_whole(b"<html>")
    with pytest.raises(GatewayError) as caught:
        MessageReader({}).read_whole(b'{"type":"error","error":{"type":"overloaded_error"}}')
    assert caught.value.kind is Kind.UPSTREAM_OVERLOADED


@pytest.mark.parametrize(
    ("status", "vendor", "retry_after", "kind", "ours", "seconds"),
    [
        (400, "invalid_request_error", None, Kind.UPSTREAM_INVALID_REQUEST, 400, None),
        (401, "authentication_error", None, Kind.UPSTREAM_AUTH, 502, None),
        (403, "permission_error", None, Kind.UPSTREAM_AUTH, 502, None),
        (402, "billing_error", None, Kind.UPSTREAM_AUTH, 502, None),
        (404, "not_found_error", None, Kind.UPSTREAM_MODEL_UNAVAILABLE, 502, None),
        (413, "request_too_large", None, Kind.UPSTREAM_TOO_LARGE, 413, None),
        (429, "rate_limit_error", "7", Kind.UPSTREAM_RATE_LIMITED, 429, 7),
        (429, "rate_limit_error", "1.2", Kind.UPSTREAM_RATE_LIMITED, 429, 2),
        (429, "rate_limit_error", "soon", Kind.UPSTREAM_RATE_LIMITED, 429, None),
        (429, "rate_limit_error", "999999", Kind.UPSTREAM_RATE_LIMITED, 429, 3600),
        (500, "api_error", None, Kind.UPSTREAM_ERROR, 502, 10),
        (503, "api_error", "3", Kind.UPSTREAM_ERROR, 502, 3),
        (529, "overloaded_error", None, Kind.UPSTREAM_OVERLOADED, 503, 10),
        (408, None, None, Kind.UPSTREAM_TIMEOUT, 504, None),
        (529, None, None, Kind.UPSTREAM_OVERLOADED, 503, 10),
        (502, None, None, Kind.UPSTREAM_ERROR, 502, 10),
        (302, None, None, Kind.UPSTREAM_PROTOCOL, 502, None),
    ],
)
def test_error_statuses(status: int, vendor: str | None, retry_after: str | None, kind: Kind, ours: int, seconds: int | None) -> None:
    body = json.dumps({"type": "error", "error": {"type": vendor, "message": "words"}}).encode()
    error = error_from_status(status, body if vendor else b"<html>words</html>", retry_after)
    assert (error.kind, error.kind.spec.status, error.retry_after_s) == (kind, ours, seconds)
    # Only the fault of the request is told in the vendor's words (and redacted later, in the core).
    assert ("words" in error.message) == (kind is Kind.UPSTREAM_INVALID_REQUEST)


def test_t23_reasoning_without_its_words_shows_that_the_answer_has_begun() -> None:
    """All that comes before the signature are pings, and those alone come from a vendor with a queue as well."""
    stream = [start(input_tokens=1), {"type": "ping"}, block(0, type="thinking", thinking=""), {"type": "ping"}]
    hidden = read([*stream, delta(0, type="signature_delta", signature="c2ln"), stop(0)])
    assert hidden[1:] == [ALIVE, BEGUN, ALIVE, ALIVE, ThinkingEnd("c2ln")]
    assert not ALIVE.begun and not is_content(BEGUN), "another provider may still take over"


def piece(index: int | None, call_id: str | None, name: str | None, arguments: str) -> Json:
    function = {"name": name, "arguments": arguments} if name is not None else {"arguments": arguments}
    call = {"index": index, "id": call_id, "type": "function", "function": function}
    return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}


FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}


@pytest.mark.parametrize("no_id", ["", None])
@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        ([("a", '{"x":1}'), ("b", '{"y":2}')], [("a", '{"x":1}'), ("b", '{"y":2}')]),
        ([("a", '{"x":'), (None, "1}"), ("b", ""), (None, '{"y":2}')], [("a", '{"x":1}'), ("b", '{"y":2}')]),
        ([("a", ""), ("b", "")], [("a", "{}"), ("b", "{}")]),
        # Twice the same tool; and a server that repeats the name with every piece.
        ([("a", '{"x":1}'), ("a", '{"x":2}')], [("a", '{"x":1}'), ("a", '{"x":2}')]),
        ([("a", '{"x":{"y":1}'), ("a", "}")], [("a", '{"x":{"y":1}}')]),
        ([("a", ""), ("a", '{"x":'), ("a", "1}")], [("a", '{"x":1}')]),
    ],
)
def test_calls_without_ids_are_told_apart_and_get_ids(
    no_id: str | None, pieces: list[tuple[str | None, str]], calls: list[tuple[str, str]]
) -> None:
    """All have the same index. What the client gets has ids that it can answer with."""
    reader = openai_upstream_response.ChatReader({})
    collector = Collector()
    for item in [*(piece(0, no_id, name, text) for name, text in pieces), FINISH]:
        for event in reader.read(json.dumps(item).encode()):
            collector.add(event)
    for event in reader.read(b"[DONE]"):
        collector.add(event)
    got = collector.completion("chatcmpl-1", 5, "sonnet")["choices"][0]["message"]["tool_calls"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in got] == calls
    ids = [call["id"] for call in got]
    assert len(set(ids)) == len(ids) and all(len(call_id) > 20 for call_id in ids)
    results = [{"role": "tool", "tool_call_id": call_id, "content": "ok"} for call_id in ids]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": got}, *results]
    build_messages_request(parse_chat_request({"model": "m", "messages": messages}), "c", 10)


def test_a_call_whose_id_comes_late_or_again_stays_one() -> None:
    for ids in (["", "c1", "c1"], ["c1", "", None], ["c1", "c1", "c1"]):
        reader = openai_upstream_response.ChatReader({})
        texts = zip(ids, [("a", ""), (None, '{"x":'), (None, "1}")], strict=True)
        events = [event for call, (name, text) in texts for event in reader.read(json.dumps(piece(0, call, name, text)).encode())]
        assert [event for event in events if isinstance(event, ToolStart)] == events[:1], ids
        assert "".join(event.fragment for event in events if isinstance(event, ToolArguments)) == '{"x":1}'


def test_calls_of_a_document_without_ids_or_indices() -> None:
    calls = [{"type": "function", "function": {"name": name, "arguments": "{}"}} for name in ("a", "a")]
    document = {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}]}
    events = openai_upstream_response.ChatReader({}).read_whole(json.dumps(document).encode())
    starts = [event for event in events if isinstance(event, ToolStart)]
    assert [start.name for start in starts] == ["a", "a"] and starts[0].id and starts[0].id != starts[1].id


@pytest.mark.parametrize("read_error", [error_from_status, openai_upstream_response.error_from_status])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30),
        ("Sun, 22 Nov 2026 12:00:30 -0000", 30),
        ("Sun, 22 Nov 2026 13:00:30 +0100", 30),
        ("Sunday, 22-Nov-26 12:00:30 GMT", 30),
        ("Mon, 23 Nov 2026 12:00:00 GMT", 3600),
        ("Sun, 22 Nov 2026 11:59:59 GMT", 0),
        ("Sun, 22 Nov 2026", None),
        ("Sun, 99 Nov 2026 12:00:30 GMT", None),
        ("Sun, 22 Nov 99999999999999999999 12:00:30 GMT", None),
        ("Sun, 22 Nov 2026 12:00:30 +99999999999999999999", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("-5", None),
    ],
)
def test_a_retry_after_may_be_a_date(read_error: Any, header: str, seconds: int | None) -> None:
    now = 1795348799.5  # 2026-11-22 11:59:59.5; part of a second more is waited, not less
    assert read_error(429, b"{}", header, lambda: now + 0.5).retry_after_s == seconds


EMPTY_BALANCE = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."
OWN_LIMIT = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."


@pytest.mark.parametrize("words", [EMPTY_BALANCE, OWN_LIMIT])
def test_an_account_without_money_is_no_fault_of_the_request(words: str) -> None:
    """The vendor calls it an invalid request; another provider has money."""
    event = {"type": "error", "error": {"type": "invalid_request_error", "message": words}}
    error = error_from_status(400, json.dumps(event).encode(), None)
    with pytest.raises(GatewayError) as caught:
        MessageReader({}).read(json.dumps(event).encode())
    for found in (error, caught.value):
        assert found.kind is Kind.UPSTREAM_AUTH and found.kind.spec.fails_over
        assert "credit" not in found.message and "limits" not in found.message


def test_the_words_about_money_inside_another_message_mean_nothing() -> None:
    words = f"messages.0.content: unexpected value `{EMPTY_BALANCE}`"
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": words}}
    assert error_from_status(400, json.dumps(body).encode(), None).kind is Kind.UPSTREAM_INVALID_REQUEST

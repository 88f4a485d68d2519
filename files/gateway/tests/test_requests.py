"""T1 to T21: an OpenAI chat request, as the Messages API gets it.

Expected bodies are written by hand from the vendor's documentation. The numbers are those of the list
of translation cases that issue 4 completes.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from hearth_gateway.errors import InvalidRequestError
from hearth_gateway.translate.anthropic_request import AnthropicRequest, build_messages_request
from hearth_gateway.translate.fields import MAX_DEPTH, TooDeepError, json_bytes, parsed_json
from hearth_gateway.translate.history import START_OF_CONVERSATION
from hearth_gateway.translate.openai_request import parse_chat_request
from hearth_gateway.translate.openai_upstream_request import build_chat_request

Json = dict[str, Any]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 8).decode()
PDF = base64.b64encode(b"%PDF-1.7 x").decode()
CACHE = {"type": "ephemeral"}


def user(content: Any = "Hi") -> Json:
    return {"role": "user", "content": content}


def text(value: str, **more: Any) -> Json:
    return {"type": "text", "text": value, **more}


def call(call_id: str, name: str = "weather", arguments: Any = "{}") -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(name: str = "weather", **function: Any) -> Json:
    return {"type": "function", "function": {"name": name, **function}}


def built(*messages: Json, ceiling: int = 1000, **fields: Any) -> AnthropicRequest:
    request = parse_chat_request({"model": "sonnet", "messages": list(messages) or [user()], **fields})
    return build_messages_request(request, "claude-x", ceiling)


def body(*messages: Json, **fields: Any) -> Json:
    return built(*messages, **fields).body


def refusal(*messages: Json, **fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        built(*messages, **fields)
    return caught.value


def test_the_smallest_request() -> None:
    assert body() == {
        "model": "claude-x",
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": [text("Hi")]}],
        "stream": True,
    }


def test_t01_leading_system_messages_become_blocks_and_keep_cache_control() -> None:
    system = {"role": "system", "content": [text("A", cache_control=CACHE), text("  ")]}
    developer = {"role": "developer", "content": "B"}
    assert body(system, developer, user())["system"] == [text("A", cache_control=CACHE), text("B")]
    assert "system" not in body({"role": "system", "content": ""}, user())


def test_t02_a_later_system_message_stays_in_its_place() -> None:
    got = body(user("one"), {"role": "system", "content": "Be brief."}, user("two"))
    assert "system" not in got
    wrapped = "<system-message>\nBe brief.\n</system-message>"
    assert got["messages"] == [{"role": "user", "content": [text("one"), text(wrapped), text("two")]}]


def test_t03_neighbours_of_one_role_are_joined_and_the_user_begins() -> None:
    got = body({"role": "assistant", "content": "Hello!"}, user("a"), user("b"))["messages"]
    assert [turn["role"] for turn in got] == ["user", "assistant", "user"]
    assert got[0]["content"] == [text(START_OF_CONVERSATION)]
    assert got[2]["content"] == [text("a"), text("b")]


def test_t04_no_empty_text_and_no_white_space_at_the_end_of_a_prefill() -> None:
    got = body(user([text(" \n"), text("x")]), {"role": "assistant", "content": "So: \n "})["messages"]
    assert got == [
        {"role": "user", "content": [text("x")]},
        {"role": "assistant", "content": [text("So:")]},
    ]
    assert refusal(user("  ")).param == "messages[0].content"
    assert refusal(user([text("")])).param == "messages[0].content"
    # An empty answer in the history is no reason to end the conversation.
    got = body(user("a"), {"role": "assistant", "content": ""}, user("b"))["messages"]
    assert got == [{"role": "user", "content": [text("a"), text("b")]}]


def test_t05_tool_results_share_one_turn_and_come_first() -> None:
    got = body(
        user("weather?"),
        {"role": "assistant", "content": None, "tool_calls": [call("c1"), call("c2")]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "tool", "tool_call_id": "c2", "content": [text("rain")]},
        user("and?"),
        tools=[tool()],
    )["messages"]
    assert got[1]["content"] == [
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {}},
        {"type": "tool_use", "id": "c2", "name": "weather", "input": {}},
    ]
    assert got[2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": [text("sun")]},
        {"type": "tool_result", "tool_use_id": "c2", "content": [text("rain")]},
        text("and?"),
    ]


def test_t05_a_system_message_between_call_and_result_does_not_separate_them() -> None:
    got = body(
        user(),
        {"role": "assistant", "tool_calls": [call("c1")]},
        {"role": "system", "content": "Note"},
        {"role": "tool", "tool_call_id": "c1", "content": ""},
        tools=[tool()],
    )["messages"]
    assert [block["type"] for block in got[2]["content"]] == ["tool_result", "text"]
    assert "content" not in got[2]["content"][0]  # an empty result is one without content


def test_t06_every_call_needs_its_result() -> None:
    assistant = {"role": "assistant", "tool_calls": [call("c1"), call("c2")]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "x"}
    assert "`c2`" in refusal(user(), assistant, result).message
    assert "`c1`" in refusal(user(), assistant).message
    assert "`c9`" in refusal(user(), {**result, "tool_call_id": "c9"}).message
    one_call = {"role": "assistant", "tool_calls": [call("c1")]}
    assert "two results" in refusal(user(), one_call, result, result).message
    # The id is the caller's own text: a long or odd one is not repeated.
    odd = {"role": "assistant", "tool_calls": [call("my secret words")]}
    assert "secret" not in refusal(user(), odd).message


@pytest.mark.parametrize(
    ("arguments", "parsed"),
    [
        ("", {}),
        (None, {}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": ', {"invalid_json": '{"a": '}),
        ("[1]", {"value": [1]}),
    ],
)
def test_t07_arguments_never_end_the_conversation(arguments: Any, parsed: Json) -> None:
    got = body(
        user(),
        {"role": "assistant", "tool_calls": [call("c1", arguments=arguments)]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
        tools=[tool()],
    )
    assert got["messages"][1]["content"][0]["input"] == parsed


LONG = '{"id": 123456789012345678901234567890, "amount": 0.12345678901234567890, "note": "x"}'


def test_t07_numbers_of_any_length_keep_their_digits() -> None:
    """Parsed, they would be 1.2345678901234568e+29: another account, another amount."""
    turns = [
        user(),
        {"role": "assistant", "tool_calls": [call("c1", arguments=LONG)]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
    ]
    sent = json_bytes(body(*turns)).decode()
    assert f'"input":{LONG}' in sent
    request = parse_chat_request({"model": "m", "messages": turns})
    chat = build_chat_request(request, "m", 10).body
    assert chat["messages"][1]["tool_calls"][0]["function"]["arguments"] == LONG
    assert LONG in request.texts(), "what a vendor may quote is known in the form that it got"


def test_t07_arguments_go_on_to_servers_of_the_same_api_as_they_came() -> None:
    turns = [
        user(),
        {"role": "assistant", "tool_calls": [call("c1", arguments='{ "a" : 1.0, "a": 2 }')]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
    ]
    chat = build_chat_request(parse_chat_request({"model": "m", "messages": turns}), "m", 10).body
    assert chat["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{ "a" : 1.0, "a": 2 }'


def test_a_refusal_of_an_earlier_turn_stays_in_the_conversation() -> None:
    refused = {"role": "assistant", "content": None, "refusal": "I will not."}
    got = body(user("a"), refused, user("b"))["messages"]
    assert [turn["content"] for turn in got] == [[text("a")], [text("I will not.")], [text("b")]]
    assert refusal(user(), {**refused, "refusal": 5}, user()).param == "messages[1].refusal"


@pytest.mark.parametrize(
    ("messages", "ignored"),
    [
        ([{**user(), "name": "ann"}], ("messages.name",)),
        ([{**user(), "name": None}], ()),
        (
            [user([{"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "high"}}])],
            ("messages.image_url.detail",),
        ),
        ([user([{"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "auto"}}])], ()),
        (
            [
                user(),
                {"role": "assistant", "tool_calls": [call("c1")]},
                {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "x"},
            ],
            (),
        ),
    ],
)
def test_t20_what_is_left_out_of_messages_is_listed(messages: list[Json], ignored: tuple[str, ...]) -> None:
    assert parse_chat_request({"model": "m", "messages": messages}).ignored == ignored
    assert parse_chat_request({"model": "m", "messages": messages, "seed": 1}).ignored == (*ignored, "seed")


def test_t08_schemas_go_through_whole() -> None:
    schema = {
        "type": "object",
        "properties": {"place": {"$ref": "#/$defs/place"}},
        "$defs": {"place": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "additionalProperties": False,
    }
    got = body(tools=[tool(parameters=schema, description="Says it", strict=True), tool("now")])["tools"]
    assert got == [
        {"name": "weather", "input_schema": schema, "description": "Says it", "strict": True},
        {"name": "now", "input_schema": {"type": "object", "properties": {}}},
    ]


def test_t09_tool_names_are_made_acceptable_and_back() -> None:
    names = ["a.b", "a_b", "a b", "x" * 130, "x" * 128]
    got = built(
        user(),
        {"role": "assistant", "tool_calls": [call("c1", name="a.b")]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
        tools=[tool(name) for name in names],
        tool_choice={"type": "function", "function": {"name": "a b"}},
    )
    sent = [item["name"] for item in got.body["tools"]]
    assert sent[1] == "a_b" and sent[4] == "x" * 128, "a good name stays as it is"
    assert len(set(sent)) == 5 and all(len(name) <= 128 for name in sent)
    assert [got.names[name] for name in sent] == names
    assert got.body["messages"][1]["content"][0]["name"] == sent[0]
    assert got.body["tool_choice"]["name"] == sent[2]


def test_t10_calls_in_the_history_without_tools() -> None:
    got = body(
        user(),
        {"role": "assistant", "tool_calls": [call("c1")]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
    )
    assert [item["name"] for item in got["tools"]] == ["weather"]
    assert got["tool_choice"] == {"type": "none"}


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        ("auto", None, {"type": "auto"}),
        ("required", None, {"type": "any"}),
        ("none", None, {"type": "none"}),
        ({"type": "function", "function": {"name": "weather"}}, None, {"type": "tool", "name": "weather"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("required", True, {"type": "any", "disable_parallel_tool_use": False}),
        ("none", False, {"type": "none"}),
    ],
)
def test_t11_tool_choice(choice: Any, parallel: bool | None, expected: Json | None) -> None:
    got = body(tools=[tool()], tool_choice=choice, parallel_tool_calls=parallel)
    assert got.get("tool_choice") == expected
    assert "tool_choice" not in body(parallel_tool_calls=False)  # without tools it means nothing


def test_t11_choices_that_cannot_be() -> None:
    assert refusal(tool_choice="required").param == "tool_choice"
    assert refusal(tools=[tool()], tool_choice="sometimes").param == "tool_choice"
    wrong = {"type": "function", "function": {"name": "other"}}
    assert refusal(tools=[tool()], tool_choice=wrong).param == "tool_choice"


def test_t12_images_and_documents() -> None:
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}},
        text("What is this?", cache_control=CACHE),
    ]
    assert body(user(content))["messages"][0]["content"] == [
        # The type is what the bytes say, not what the address says.
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
            "title": "a.pdf",
        },
        text("What is this?", cache_control=CACHE),
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}},
        {"type": "image_url", "image_url": {"url": "http://example.org/a.png"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": "https://example.org/a.pdf"}},
        {"type": "file", "file": {"file_data": PDF}},
        {"type": "image_url"},
        {"type": "text"},
        {},
    ],
)
def test_t12_what_cannot_be_sent_is_refused_not_dropped(part: Json) -> None:
    error = refusal(user([text("x"), part]))
    assert error.param is not None and error.param.startswith("messages[0].content[1]")


def test_t13_stop() -> None:
    assert body(stop="END")["stop_sequences"] == ["END"]
    assert body(stop=["a", " ", "b"])["stop_sequences"] == ["a", "b"]
    assert "stop_sequences" not in body(stop=["\n"])
    assert refusal(stop=list("abcde")).param == "stop"
    assert refusal(stop=[1]).param == "stop"


def test_t14_max_tokens_is_asked_for_or_the_ceiling_of_the_model() -> None:
    assert body(ceiling=64_000)["max_tokens"] == 64_000
    assert body(max_tokens=5)["max_tokens"] == 5
    assert body(max_tokens=5, max_completion_tokens=7)["max_tokens"] == 7
    over = built(max_tokens=5000)
    assert over.body["max_tokens"] == 1000 and over.adjusted == ("max_tokens",)
    for wrong in (0, -1, 1.5, True, "9"):
        assert refusal(max_tokens=wrong).param == "max_tokens"


def test_t15_sampling() -> None:
    assert body(temperature=0)["temperature"] == 0
    hot = built(temperature=1.7, top_p=0.5)
    assert hot.body["temperature"] == 1 and "top_p" not in hot.body
    assert hot.adjusted == ("temperature", "top_p")
    assert body(top_p=0.5)["top_p"] == 0.5
    assert refusal(temperature=2.1).param == "temperature"
    assert refusal(top_p="x").param == "top_p"


def test_t16_t20_t21_nothing_unknown_reaches_the_vendor() -> None:
    hints = {"user": "ann@example.org", "seed": 1, "logit_bias": {"1": 1}, "metadata": {"a": "b"}, "secret_thing": 1}
    request = parse_chat_request({"model": "m", "messages": [user()], "stream": True, **hints})
    assert set(build_messages_request(request, "c", 10).body) == {"model", "max_tokens", "messages", "stream"}
    # Unknown names are the caller's words and are not repeated.
    assert request.ignored == ("logit_bias", "metadata", "seed", "user", "unknown-fields")
    assert "ann@" not in json.dumps(build_messages_request(request, "c", 10).body)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"functions": []}, "functions"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
    ],
)
def test_what_we_cannot_honour_is_refused(fields: Json, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat_request({"model": "m", "messages": [user()], **fields})
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        (["x"], "messages[0]"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": "system", "content": "x"}], "messages"),
        ([user(5)], "messages[0].content"),
        ([user(), {"role": "assistant", "content": [{"type": "image_url"}]}], "messages[1].content[0]"),
        ([user(), {"role": "assistant", "tool_calls": {}}], "messages[1].tool_calls"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
    ],
)
def test_messages_that_are_none(value: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat_request({"model": "m", "messages": value})
    assert caught.value.param == param


def test_t19_cache_breakpoints_have_a_limit() -> None:
    marked = [text("x", cache_control=CACHE) for _ in range(5)]
    assert "5" in refusal(user(marked)).message
    assert len(body(user(marked[:4]))["messages"][0]["content"]) == 4


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_a_body_that_is_no_object(value: Any) -> None:
    with pytest.raises(InvalidRequestError):
        parse_chat_request(value)


def test_what_cannot_be_written_is_the_callers_fault_and_not_quoted() -> None:
    deep: Json = {}
    for _ in range(300):
        deep = {"secret": deep}
    with pytest.raises(InvalidRequestError) as caught:
        json_bytes({"messages": [deep]})
    assert "nested too deeply" in caught.value.message and "secret" not in caught.value.message
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("head", ["[", '{"a":'])
def test_the_depth_that_is_taken_can_also_be_written(head: str) -> None:
    def nested(levels: int) -> bytes:
        return (head * levels + "1" + ("]" if head == "[" else "}") * levels).encode()

    value: Any = parsed_json(nested(MAX_DEPTH))
    for _ in range(10):  # what a vendor's body has around a caller's value
        value = {"x": value}
    json_bytes(value)
    with pytest.raises(TooDeepError):
        parsed_json(nested(MAX_DEPTH + 1))
    # Brackets in a string are no levels, and many neighbours are not deep.
    assert parsed_json(b'{"a":"' + b"[" * 500 + b'"}') == {"a": "[" * 500}
    assert len(parsed_json(b"[" + b",".join([b"{}"] * 500) + b"]")) == 500

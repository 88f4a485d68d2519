"""An Anthropic Messages request: parsed, and as the Messages API of the vendor gets it again."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from hearth_gateway.errors import InvalidRequestError
from hearth_gateway.translate.anthropic_request import build_messages_request
from hearth_gateway.translate.messages_request import parse_messages_request
from hearth_gateway.translate.model import ChatRequest, JsonOutput, ThinkingConfig
from hearth_gateway.translate.traits import anthropic_traits

Json = dict[str, Any]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 8).decode()
PDF = base64.b64encode(b"%PDF-1.7 x").decode()
CACHE = {"type": "ephemeral", "ttl": "1h"}
TOOL = {"name": "weather", "input_schema": {"type": "object", "$defs": {"a": {}}, "additionalProperties": False}}


def user(*content: Any) -> Json:
    return {"role": "user", "content": list(content) or "Hi"}


def assistant(*content: Any) -> Json:
    return {"role": "assistant", "content": list(content)}


def text(value: str, **more: Any) -> Json:
    return {"type": "text", "text": value, **more}


def parsed(*messages: Json, **fields: Any) -> ChatRequest:
    return parse_messages_request({"model": "sonnet", "max_tokens": 2000, "messages": list(messages) or [user()], **fields})


def upstream(*messages: Json, **fields: Any) -> Json:
    """What the vendor with the same API gets."""
    return build_messages_request(parsed(*messages, **fields), "claude-x", 64_000).body


def refusal(*messages: Json, **fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parsed(*messages, **fields)
    return caught.value


def test_the_smallest_request() -> None:
    assert upstream() == {
        "model": "claude-x",
        "max_tokens": 2000,
        "messages": [{"role": "user", "content": [text("Hi")]}],
        "stream": True,
    }


def test_the_vendor_with_the_same_api_gets_the_same_conversation() -> None:
    messages = [
        user(
            text("Look", cache_control=CACHE),
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            {"type": "document", "title": "A", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}},
        ),
        assistant(
            {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "ZW5j"},
            text("Let me see."),
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Bern"}, "cache_control": CACHE},
        ),
        user({"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": [text("No such place")]}, text("Well?")),
    ]
    fields: Json = {
        "system": [text("Be kind.", cache_control=CACHE), text("Be brief.")],
        "tools": [{**TOOL, "description": "Weather", "strict": True, "cache_control": CACHE}],
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "top_k": 7,
    }
    got = upstream(*messages, **fields)
    assert got == {"model": "claude-x", "max_tokens": 2000, "stream": True, "messages": messages, **fields}


def test_strings_stand_for_one_text_block() -> None:
    got = upstream({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, user(), system="Be kind.")
    assert got["system"] == [text("Be kind.")]
    assert [turn["content"] for turn in got["messages"]] == [[text("a")], [text("b")], [text("Hi")]]
    tool_use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
    got = upstream(user(), assistant(tool_use), user({"type": "tool_result", "tool_use_id": "t1", "content": "Sun"}), tools=[TOOL])
    assert got["messages"][2]["content"] == [{"type": "tool_result", "tool_use_id": "t1", "content": [text("Sun")]}]


def test_empty_text_is_left_out_and_an_empty_user_message_refused() -> None:
    assert upstream(user(text(" \n"), text("x")), system="  ")["messages"] == [{"role": "user", "content": [text("x")]}]
    assert refusal(user(text(""))).param == "messages[0].content"
    assert refusal({"role": "user", "content": None}).param == "messages[0].content"


def test_a_system_message_leads_or_stays_in_its_place() -> None:
    rule = {"role": "system", "content": "Be brief."}
    assert upstream(rule, user(), system="Be kind.")["system"] == [text("Be kind."), text("Be brief.")]
    got = upstream(user(text("one")), rule)
    assert "system" not in got
    wrapped = "<system-message>\nBe brief.\n</system-message>"
    assert got["messages"] == [{"role": "user", "content": [text("one"), text(wrapped)]}]


def test_what_a_model_said_goes_back_as_the_sdk_sends_it() -> None:
    """The SDK sends blocks of an answer with all their fields, also those that are null."""
    said = [{"type": "text", "text": "Hello", "citations": None, "parsed_output": None}]
    assert upstream(user(), assistant(*said), user())["messages"][1]["content"] == [text("Hello")]


def test_text_documents_become_text_with_their_title() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "Once upon a time."}
    block = {"type": "document", "title": "Tale", "context": "For children", "source": source, "citations": {"enabled": False}}
    got = upstream(user(block))["messages"][0]["content"]
    assert got == [text("About the following document: For children"), text("Document: Tale\n\nOnce upon a time.")]


def test_media_types_are_what_the_bytes_say() -> None:
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": PNG}}
    assert upstream(user(block))["messages"][0]["content"][0]["source"]["media_type"] == "image/png"


def test_cache_control_of_the_request_marks_the_last_block_that_can_carry_it() -> None:
    got = upstream(user(text("a"), text("b")), cache_control=CACHE)["messages"]
    assert got[0]["content"] == [text("a"), text("b", cache_control=CACHE)]
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
    got = upstream(user(), assistant(text("x"), thinking), cache_control=CACHE)["messages"]
    assert got[1]["content"] == [text("x", cache_control=CACHE), thinking]
    # The caller's own mark stands.
    own = {"type": "ephemeral"}
    assert upstream(user(text("a", cache_control=own)), cache_control=CACHE)["messages"][0]["content"] == [text("a", cache_control=own)]


def test_thinking_effort_and_output_are_understood() -> None:
    schema = {"type": "object", "properties": {}}
    request = parsed(
        thinking={"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": schema}},
    )
    assert request.thinking == ThinkingConfig("enabled", 1024, "omitted")
    assert request.effort == "high"
    assert request.output == JsonOutput(schema, strict=True)
    assert parsed(thinking={"type": "adaptive"}).thinking == ThinkingConfig("adaptive")
    assert parsed().thinking is None and parsed().effort is None and parsed().output is None


def test_effort_alone_does_not_turn_thinking_on() -> None:
    body = upstream(output_config={"effort": "low"})
    assert body["output_config"] == {"effort": "low"} and "thinking" not in body
    body = upstream(output_config={"effort": "low"}, thinking={"type": "adaptive", "display": "omitted"})
    assert body["output_config"] == {"effort": "low"} and body["thinking"] == {"type": "adaptive", "display": "omitted"}


def served_by(model: str, *messages: Json, **fields: Any) -> tuple[Json, tuple[str, ...]]:
    """The thinking and the effort that the vendor gets, and what is told to be adjusted."""
    built = build_messages_request(parsed(*messages, **{"max_tokens": 50_000, **fields}), model, 64_000, traits=anthropic_traits(model))
    return {name: built.body[name] for name in ("thinking", "output_config") if name in built.body}, built.adjusted


@pytest.mark.parametrize(
    ("budget", "display", "thinking", "effort"),
    [
        (1024, None, {"type": "adaptive", "display": "summarized"}, "low"),
        (8000, None, {"type": "adaptive", "display": "summarized"}, "medium"),
        (32_000, "omitted", {"type": "adaptive", "display": "omitted"}, "high"),
    ],
)
def test_a_budget_for_a_model_that_decides_by_itself(budget: int, display: str | None, thinking: Json, effort: str) -> None:
    """The vendor answers 400 to it, and the caller cannot know which model serves the alias."""
    asked = {"type": "enabled", "budget_tokens": budget, "display": display}
    for model in ("claude-opus-4-7", "claude-sonnet-5"):
        assert served_by(model, thinking=asked) == ({"thinking": thinking, "output_config": {"effort": effort}}, ("thinking",))
    own, _ = served_by("claude-opus-4-7", thinking=asked, output_config={"effort": "max"})
    assert own["output_config"] == {"effort": "max"}


@pytest.mark.parametrize("model", ["claude-opus-4-6", "claude-sonnet-4-5-20250929", "claude-next"])
def test_a_budget_for_a_model_that_takes_one_is_left_alone(model: str) -> None:
    asked = {"type": "enabled", "budget_tokens": 2000}
    assert served_by(model, thinking=asked) == ({"thinking": asked}, ())


def test_adaptive_reasoning_for_a_model_that_needs_a_budget() -> None:
    model, adaptive = "claude-sonnet-4-5-20250929", {"type": "adaptive"}
    assert served_by(model, thinking=adaptive) == ({"thinking": {"type": "enabled", "budget_tokens": 8192}}, ("thinking",))
    got = served_by(model, thinking={**adaptive, "display": "omitted"}, output_config={"effort": "low"})
    assert got == ({"thinking": {"type": "enabled", "budget_tokens": 2048, "display": "omitted"}}, ("thinking", "output_config.effort"))
    # Where there is no room for it, the answer comes without.
    assert served_by(model, thinking=adaptive, max_tokens=2000) == ({}, ("thinking",))
    assert served_by(model, thinking=adaptive, tools=[TOOL], tool_choice={"type": "any"}) == ({}, ("thinking",))
    for other in ("claude-opus-4-6", "claude-opus-4-8", "claude-next"):
        assert served_by(other, thinking=adaptive) == ({"thinking": adaptive}, ())


def test_reasoning_that_nobody_signed_is_left_out() -> None:
    unsigned = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assert upstream(user(), assistant(unsigned, text("x")), user())["messages"][1]["content"] == [text("x")]


def test_tool_choice() -> None:
    for mode in ("auto", "any", "none"):
        request = parsed(tools=[TOOL], tool_choice={"type": mode})
        assert request.tool_choice is not None and (request.tool_choice.mode, request.tool_choice.name) == (mode, None)
        assert request.parallel_tools is None
    assert parsed(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": False}).parallel_tools is True
    assert parsed(tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True}).parallel_tools is False


def test_metadata_is_never_passed_on_and_what_is_left_out_is_listed() -> None:
    tool = {**TOOL, "input_examples": [{}], "defer_loading": None}
    fields = {"metadata": {"user_id": "ann@example.org"}, "service_tier": "auto", "speed": None, "mine": 1}
    request = parsed(tools=[tool], **fields)
    assert request.ignored == ("metadata", "service_tier", "tools.input_examples", "unknown-fields")
    assert "ann@example.org" not in str(upstream(tools=[tool], **fields))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"system": 7}, "system"),
        ({"stream": "yes"}, "stream"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1000}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"thinking": {"type": "adaptive", "display": "loud"}}, "thinking.display"),
        ({"output_config": {"effort": "heroic"}}, "output_config.effort"),
        ({"output_config": {"effort": ["high"]}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"output_format": {"type": "json_schema"}}, "output_format"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [{**TOOL, "strict": 1}]}, "tools[0].strict"),
        ({"tools": [{**TOOL, "description": 1}]}, "tools[0].description"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": ["any"]}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": []}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}}, "tool_choice.disable_parallel_tool_use"),
        ({"cache_control": "yes"}, "cache_control"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(fields: Json, param: str) -> None:
    assert refusal(**fields).param == param


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "search_result"}, "type"),
        ({"type": "text", "text": 7}, "text"),
        ({"type": "text", "text": "x", "citations": [{}]}, "citations"),
        ({"type": "text", "text": "x", "cache_control": 1}, "cache_control"),
        ({"type": "image"}, "source"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source.type"),
        ({"type": "image", "source": {"type": "url", "url": "http://example.org/a.png"}}, "source.url"),
        ({"type": "image", "source": {"type": "base64", "data": "!"}}, "source.data"),
        ({"type": "image", "source": {"type": "base64", "data": PDF}}, "source.data"),
        ({"type": "document", "source": {"type": "base64", "data": PNG}}, "source.data"),
        ({"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}, "source.type"),
        ({"type": "document", "citations": {"enabled": True}, "source": {}}, "citations"),
        ({"type": "tool_result", "content": "x"}, "tool_use_id"),
        ({"type": "tool_result", "tool_use_id": "t", "is_error": "no"}, "is_error"),
        ({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "document"}]}, "content[0].type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_block_of_the_user_is_named(block: Json, param: str) -> None:
    assert refusal(user(text("x"), block)).param == f"messages[0].content[1].{param}"


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, "type"),
        ({"type": "tool_use", "id": "t", "name": "x", "input": "{}"}, "input"),
        ({"type": "tool_use", "id": "", "name": "x", "input": {}}, "id"),
        ({"type": "thinking", "thinking": "x"}, "signature"),
        ({"type": "redacted_thinking"}, "data"),
        ({"type": "image", "source": {}}, "type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_block_of_the_assistant_is_named(block: Json, param: str) -> None:
    assert refusal(user(), assistant(block)).param == f"messages[1].content[0].{param}"


def test_five_cache_marks_are_one_too_many() -> None:
    assert "has 5" in refusal(user(*(text("x", cache_control=CACHE) for _ in range(5)))).message


def test_a_body_that_is_no_object() -> None:
    for body in (None, [], "x", 7):
        with pytest.raises(InvalidRequestError):
            parse_messages_request(body)

"""T1 to T21: one request, and for each provider the body its vendor gets (tests/fixtures/README.md).

The goldens are written by hand from the vendors' documentation. The vendors' own SDKs check their shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParamsStreaming as AnthropicBody
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as OpenAIBody
from sdk_types import fault

from hearth_gateway.errors import InvalidRequestError
from hearth_gateway.translate.anthropic_request import AnthropicRequest, build_messages_request
from hearth_gateway.translate.model import ChatRequest
from hearth_gateway.translate.openai_request import parse_chat_request
from hearth_gateway.translate.openai_upstream_request import Dialect, OpenAIRequest, build_chat_request
from hearth_gateway.translate.traits import OPENAI, ModelTraits, anthropic_traits

FOLDER = Path(__file__).parent / "fixtures" / "requests"
TARGETS = {
    "anthropic": {"model": "claude-sonnet-4-5-20250929", "max_output_tokens": 1000},
    "openai": {"model": "bedrock-sonnet", "max_output_tokens": 1000},
}
# What LiteLLM takes beyond OpenAI's API, and OpenAI's types do not know.
EXTENSIONS = ("cache_control", "thinking_blocks")

Json = dict[str, Any]
LAST = 46  # the cases after it are the Messages API's
GOLDENS = sorted(path.name for path in FOLDER.glob("T*.*.json") if int(path.name[1:3]) <= LAST)


def load(name: str) -> Json:
    loaded: Json = json.loads((FOLDER / name).read_text())
    return loaded


def provider_of(name: str) -> str:
    return name.split(".")[1].partition("-")[0]


def build(name: str, golden: Json) -> tuple[ChatRequest, AnthropicRequest | OpenAIRequest]:
    request = parse_chat_request(load(f"{name.split('.')[0]}.json"))
    target = golden.get("target", TARGETS[provider_of(name)])
    model, ceiling, user = target["model"], target["max_output_tokens"], golden.get("user")
    if provider_of(name) == "anthropic":
        traits = ModelTraits(**golden["traits"]) if "traits" in golden else anthropic_traits(model)
        return request, build_messages_request(request, model, ceiling, traits=traits, user=user)
    traits = ModelTraits(**golden["traits"]) if "traits" in golden else OPENAI
    dialect = Dialect(**golden.get("dialect", {}))
    return request, build_chat_request(request, model, ceiling, traits=traits, dialect=dialect, user=user)


@pytest.mark.parametrize("name", GOLDENS)
def test_the_vendor_gets_exactly_this(name: str) -> None:
    golden = load(name)
    if "refused" in golden:
        with pytest.raises(InvalidRequestError) as caught:
            build(name, golden)
        assert {"param": caught.value.param, "message": caught.value.message} == golden["refused"]
        return
    request, built = build(name, golden)
    assert json.loads(json.dumps(built.body)) == golden["body"]
    assert list(built.adjusted) == golden.get("adjusted", [])
    assert list(request.ignored) == golden.get("ignored", [])
    if "names" in golden:
        assert built.names == golden["names"]


def without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: without(item, keys) for key, item in value.items() if key not in keys}
    return [without(item, keys) for item in value] if isinstance(value, list) else value


def sdk_fault(provider: str, body: Json) -> str | None:
    """Where the vendor's SDK would say that this is no request."""
    if provider == "openai":
        return fault(without(body, EXTENSIONS), OpenAIBody)
    # The SDK's types are those of the newest version of the API. Ours still has these (providers/anthropic.py).
    return fault({key: value for key, value in body.items() if key not in ("temperature", "top_p")}, AnthropicBody)


@pytest.mark.parametrize("name", [name for name in GOLDENS if "refused" not in load(name)])
def test_the_goldens_are_what_the_sdks_call_a_request(name: str) -> None:
    assert sdk_fault(provider_of(name), load(name)["body"]) is None


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("T11-required.anthropic.json", ("max_tokens",), "many"),
        ("T11-required.anthropic.json", ("stream_options",), {}),
        ("T11-required.anthropic.json", ("tool_choice", "type"), "required"),
        ("T11-required.openai.json", ("tool_choice",), "any"),
        ("T11-required.openai.json", ("system",), "x"),
        ("T05-parallel-results.anthropic.json", ("messages", 1, "content", 1, "input"), "{}"),
        ("T05-parallel-results.openai.json", ("messages", 1, "tool_calls", 0, "function", "arguments"), {}),
        ("T12-media.openai.json", ("messages", 0, "content", 0, "type"), "image"),
    ],
)
def test_the_check_by_the_sdks_finds_what_is_wrong(name: str, path: tuple[str | int, ...], value: Any) -> None:
    body = load(name)["body"]
    place: Any = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert sdk_fault(provider_of(name), body) is not None


def test_every_request_has_a_golden_for_each_provider() -> None:
    requests = {path.name.split(".")[0] for path in FOLDER.glob("T*.json") if int(path.name[1:3]) <= LAST}
    for request in requests:
        for provider in TARGETS:
            assert f"{request}.{provider}.json" in GOLDENS, f"{request} has no golden for {provider}"
        assert (FOLDER / f"{request}.json").exists()

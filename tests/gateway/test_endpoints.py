"""Embeddings and images with the real OpenAI SDK, against a mock vendor over real HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from gateway_support import SECOND_API_KEY, TOKEN, Gateway, Mock

PROMPT = "a lighthouse at dusk"


def provider(name: str, url: str, gateway: Gateway) -> dict[str, Any]:
    return {"name": name, "kind": "openai", "base_url": url, "api_key_file": str(gateway.directory / "second-key")}


def test_embeddings(shared: Gateway, second_vendor: Mock) -> None:
    before, seen = shared.settled_rows(), second_vendor.asked()
    answer = shared.client().embeddings.create(model="embed", input=["one two", "drei"], dimensions=2)
    # The SDK asks for base64 by itself and decodes it.
    assert [item.embedding for item in answer.data] == [[2.0, 7.0], [1.0, 4.0]]
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.model == "embed", "the caller's name for the model, not the provider's"
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)
    row = shared.wait_row(before)
    assert (row["provider"], row["model"], row["outcome"]) == ("litellm", "mock-embed", "ok")
    assert (row["input_tokens"], row["output_tokens"], row["images"]) == (3, 0, 0)
    record = second_vendor.next_record(seen)
    assert record["path"] == "/v1/embeddings" and record["keys"] == ["dimensions", "encoding_format", "input", "model"]


def test_embeddings_as_numbers(shared: Gateway) -> None:
    answer = shared.client().embeddings.create(model="embed", input="one", encoding_format="float")
    assert answer.data[0].embedding == [1.0, 3.0, 0.0]


def test_images(shared: Gateway, second_vendor: Mock) -> None:
    before, seen = shared.settled_rows(), second_vendor.asked()
    answer = shared.client().images.generate(model="draw", prompt=PROMPT, n=2, size="1024x1024", user="ann@example.org")
    assert answer.data is not None and len(answer.data) == 2
    assert base64.b64decode(answer.data[0].b64_json or "").startswith(b"\x89PNG")
    assert answer.usage is not None and answer.usage.total_tokens == 104
    row = shared.wait_row(before)
    assert (row["outcome"], row["input_tokens"], row["output_tokens"], row["images"]) == ("ok", 4, 100, 2)
    record = second_vendor.next_record(seen)
    assert record["keys"] == ["model", "n", "prompt", "size"], "the caller's `user` stays here"


def test_headers_say_who_served(shared: Gateway) -> None:
    raw = shared.client().embeddings.with_raw_response.create(model="embed", input="x", user="somebody")
    assert (raw.headers["x-hearth-provider"], raw.headers["x-hearth-model"]) == ("litellm", "mock-embed")
    assert raw.headers["x-hearth-ignored"] == "user"
    assert raw.headers["x-request-id"]


def test_failover_over_the_list(own: Callable[..., Gateway], second_vendor: Mock) -> None:
    gateway = own(start=False, second_url=second_vendor.url)
    gateway.config["providers"].append(provider("closed", "http://127.0.0.1:9", gateway))
    for section in ("embedding_models", "image_models"):
        name = next(iter(gateway.config[section]))
        gateway.config[section][name].insert(0, {"provider": "closed", "model": "m"})
    gateway.save()
    gateway.start()
    raw = gateway.client().embeddings.with_raw_response.create(model="embed", input="one")
    assert raw.headers["x-hearth-provider"] == "litellm"
    assert raw.headers["x-hearth-failover"] == "closed=upstream_unreachable"
    assert gateway.client().images.generate(model="draw", prompt=PROMPT).data
    gateway.settled_rows()
    assert [(row["provider"], row["outcome"]) for row in gateway.rows()] == [
        ("closed", "upstream_unreachable"), ("litellm", "ok"), ("closed", "upstream_unreachable"), ("litellm", "ok"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scenario", "error"),
    [
        ("400", openai.BadRequestError),
        ("401", openai.InternalServerError),
        ("429", openai.RateLimitError),
        ("500", openai.InternalServerError),
        ("html", openai.InternalServerError),
        ("close", openai.InternalServerError),
    ],
)
def test_faults_of_the_vendor(own: Callable[..., Gateway], second_vendor: Mock, scenario: str, error: type[openai.APIStatusError]) -> None:
    gateway = own(
        second_url=second_vendor.url,
        embedding_models={"embed": [{"provider": "litellm", "model": f"mock+{scenario}"}]},
        image_models={"draw": [{"provider": "litellm", "model": f"draw+{scenario}"}]},
    )
    for call in (
        lambda: gateway.client().embeddings.create(model="embed", input="words of mine"),
        lambda: gateway.client().images.generate(model="draw", prompt="words of mine"),
    ):
        with pytest.raises(error) as caught:
            call()
        assert SECOND_API_KEY not in caught.value.response.text and "words of mine" not in caught.value.response.text
        assert set(caught.value.response.json()["error"]) == {"message", "type", "param", "code"}
    gateway.settled_rows()
    assert all(row["outcome"].startswith("upstream_") for row in gateway.rows())
    assert sum(row["input_tokens"] + row["output_tokens"] + row["images"] for row in gateway.rows()) == 0


def test_not_configured_says_so(own: Callable[..., Gateway]) -> None:
    gateway = own()
    with pytest.raises(openai.NotFoundError) as caught:
        gateway.client().embeddings.create(model="embed", input="x")
    assert caught.value.code == "model_not_found" and "`embedding_models`" in caught.value.message
    with pytest.raises(openai.NotFoundError) as caught:
        gateway.client().images.generate(model="draw", prompt="x")
    assert caught.value.code == "model_not_found" and "`image_models`" in caught.value.message


def test_an_unknown_model(shared: Gateway) -> None:
    for call in (
        lambda: shared.client().embeddings.create(model="sonnet", input="x"),
        lambda: shared.client().images.generate(model="embed", prompt="x"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/embeddings", {}, "input"),
        ("/embeddings", {"input": ""}, "input[0]"),
        ("/embeddings", {"input": []}, "input"),
        ("/embeddings", {"input": ["x", 5]}, "input[1]"),
        ("/embeddings", {"input": [[]]}, "input[0]"),
        ("/embeddings", {"input": ["x"] * 2049}, "input"),
        ("/embeddings", {"input": "x", "dimensions": 0}, "dimensions"),
        ("/embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ("/images/generations", {}, "prompt"),
        ("/images/generations", {"prompt": " "}, "prompt"),
        ("/images/generations", {"prompt": "x", "n": 11}, "n"),
        ("/images/generations", {"prompt": "x", "stream": True}, "stream"),
        ("/images/generations", {"prompt": "x", "size": 5}, "size"),
    ],
)
def test_wrong_requests(shared: Gateway, path: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        shared.client().post(path, body={"model": "m", **fields}, cast_to=object)
    assert caught.value.param == param


def test_a_token_is_needed(shared: Gateway) -> None:
    with pytest.raises(openai.AuthenticationError):
        shared.client(api_key="wrong-token-0123456789").embeddings.create(model="embed", input="x")
    assert TOKEN not in json.dumps(shared.log_lines)

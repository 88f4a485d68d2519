"""The real LiteLLM from PyPI as the second provider: the first one dies in the middle of a conversation with tools.

LiteLLM runs as operators run it, as a proxy with a configuration, from its own environment (scripts/setup.sh
litellm). Behind it are the mock vendors, once in OpenAI's and once in Anthropic's format, and they check every
request strictly: what LiteLLM makes of ours must be valid there too.
"""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from gateway_support import API_KEY, ROOT, SECOND_API_KEY, Gateway, Mock, wait_for

# Importing LiteLLM alone takes ten seconds of a quiet core.
START_S = 240
QUESTION = {"role": "user", "content": "How is the weather in Zürich?"}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of some days",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["place"],
                "additionalProperties": False,
            },
        },
    }
]
UPSTREAMS = ("openai", "anthropic")
SCENARIOS = ("normal", "slow", "tool")


class LiteLLM:
    """LiteLLM's proxy. Its models are `<format of the vendor behind>-<scenario>`."""

    key = "sk-litellm-proxy-0123456789"

    def __init__(self, directory: Path, openai_url: str, anthropic_url: str) -> None:
        setup = subprocess.run([ROOT / "scripts" / "setup.sh", "litellm"], cwd=ROOT, check=True, capture_output=True, text=True)
        venv = Path(setup.stdout.splitlines()[-1])
        vendors = {"openai": (f"{openai_url}/v1", SECOND_API_KEY), "anthropic": (anthropic_url, API_KEY)}
        config = {
            "model_list": [
                {
                    "model_name": f"{upstream}-{scenario}",
                    "litellm_params": {"model": f"{upstream}/mock+{scenario}", "api_base": base, "api_key": key},
                }
                for upstream, (base, key) in vendors.items()
                for scenario in SCENARIOS
            ],
            # Ours is the failover: a retry inside would only hide what happens.
            "router_settings": {"num_retries": 0},
            "litellm_settings": {"num_retries": 0, "telemetry": False},
            "general_settings": {"master_key": self.key},
        }
        file = directory / "litellm.yaml"
        file.write_text(yaml.safe_dump(config))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        # Nothing of this environment: neither our secrets nor a .env file are its business, and it asks nobody for prices.
        environment = {"PATH": f"{venv}/bin:/usr/bin:/bin", "HOME": str(directory), "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                       "LITELLM_MODE": "PRODUCTION"}  # fmt: skip
        self.log = (directory / "litellm.log").open("wb")
        self.process = subprocess.Popen(
            [venv / "bin" / "litellm", "--config", file, "--host", "127.0.0.1", "--port", str(port)],
            cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait_until_alive(self) -> None:
        def alive() -> bool:
            assert self.process.poll() is None, f"LiteLLM stopped with {self.process.returncode}: see {self.log.name}"
            try:
                with urllib.request.urlopen(f"{self.url}/health/liveliness", timeout=5) as response:
                    return bool(response.status == 200)
            except (urllib.error.URLError, OSError):
                return False

        wait_for(alive, f"LiteLLM to start; see {self.log.name}", START_S)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def litellm(tmp_path_factory: pytest.TempPathFactory, vendor: Mock, second_vendor: Mock) -> Iterator[LiteLLM]:
    proxy = LiteLLM(tmp_path_factory.mktemp("litellm"), second_vendor.url, vendor.url)
    try:
        proxy.wait_until_alive()
        yield proxy
    finally:
        proxy.stop()


class Conversation:
    """One person and one assistant: the history, and what each answer's headers told."""

    def __init__(self, gateway: Gateway, upstream: str) -> None:
        self.client = gateway.client(timeout=60)
        self.upstream = upstream
        self.messages: list[Any] = []

    def ask(self, message: dict[str, Any], scenario: str = "normal") -> tuple[Any, tuple[str | None, ...]]:
        """Say it, keep the answer in the history. Returns the completion and (provider, model, reasons)."""
        self.messages.append(message)
        response = self.client.chat.completions.with_raw_response.create(
            model=f"{self.upstream}-{scenario}", messages=self.messages, tools=TOOLS, max_tokens=200
        )
        completion = response.parse()
        self.messages.append(completion.choices[0].message.model_dump(exclude_none=True))
        return completion, tuple(response.headers.get(f"x-hearth-{name}") for name in ("provider", "model", "failover"))

    def result(self, text: str) -> dict[str, Any]:
        """The answer to the tool call that the assistant made last."""
        (call,) = self.messages[-1]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"place": "Zürich", "days": 3}
        assert call["function"]["name"] == "weather"
        return {"role": "tool", "tool_call_id": call["id"], "content": text}


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Mock]:
    """The first provider, to be killed."""
    (tmp_path / "first").mkdir()
    mock = Mock(tmp_path / "first")
    yield mock
    mock.stop()


@pytest.fixture
def gateway(tmp_path: Path, first: Mock, litellm: LiteLLM) -> Iterator[Gateway]:
    (tmp_path / "gateway").mkdir()
    made = Gateway(tmp_path / "gateway", first.url, start=False, timeouts={"first_token_s": 30, "idle_s": 20, "total_s": 120})
    key = made.directory / "litellm-key"
    key.write_text(litellm.key)
    made.config["providers"].append({"name": "litellm", "kind": "openai", "base_url": litellm.url, "api_key_file": str(key)})
    made.config["breaker"] = {"failures": 2, "open_s": 60}
    made.config["models"] = {
        f"{upstream}-{scenario}": [
            {"provider": "anthropic", "model": f"mock+{scenario}", "max_output_tokens": 1000},
            {"provider": "litellm", "model": f"{upstream}-{scenario}", "max_output_tokens": 1000},
        ]
        for upstream in UPSTREAMS
        for scenario in SCENARIOS
    }
    made.config_file.write_text(yaml.safe_dump(made.config))
    made.start()
    yield made
    made.stop()


@pytest.mark.timeout(START_S + 120)
@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_conversation_with_tools_goes_on_when_the_first_provider_dies(gateway: Gateway, first: Mock, upstream: str) -> None:
    talk = Conversation(gateway, upstream)
    _, served = talk.ask(QUESTION, "tool")
    assert served == ("anthropic", "mock+tool", None)
    _, served = talk.ask(talk.result("Rain until Sunday."))
    assert served == ("anthropic", "mock+normal", None)

    # It dies while it writes: half an answer is shown, then an error, and never a false end.
    broken = talk.client.chat.completions.create(
        model=f"{upstream}-slow", messages=[*talk.messages, {"role": "user", "content": "And then? " * 20}], stream=True
    )
    said = ""
    with pytest.raises(openai.APIError, match=r"broke|ended"):
        for chunk in broken:
            said += chunk.choices[0].delta.content or ""
            assert chunk.choices[0].finish_reason is None
            first.process.kill()
    assert said.startswith("You")
    first.process.wait()

    # The same history, tool call and result of the dead provider in it, is the second one's to continue.
    _, served = talk.ask({"role": "user", "content": "Ask again, please."}, "tool")
    assert served == ("litellm", f"{upstream}-tool", "anthropic=upstream_unreachable")
    completion, served = talk.ask(talk.result("Sun from Monday on."))
    assert served == ("litellm", f"{upstream}-normal", "anthropic=upstream_unreachable")
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.completion_tokens == len(completion.choices[0].message.content.split(" "))
    gateway.settled_rows()
    row = gateway.rows()[-1]
    assert (row["provider"], row["model"], row["outcome"]) == ("litellm", f"{upstream}-normal", "ok")
    assert (row["input_tokens"], row["output_tokens"]) == (completion.usage.prompt_tokens, completion.usage.completion_tokens)

    # Twice is enough: the breaker keeps the dead one out of the way, also for a stream.
    talk.ask({"role": "user", "content": "Thank you."})
    stream = talk.client.chat.completions.with_raw_response.create(
        model=f"{upstream}-normal",
        messages=[{"role": "user", "content": "one two three"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    assert stream.headers["x-hearth-failover"] == "anthropic=breaker_open"
    chunks = list(stream.parse())
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "You said: one two three"
    usage: Any = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 5)


@pytest.mark.timeout(START_S + 120)
def test_a_client_that_leaves_cancels_through_litellm(gateway: Gateway, first: Mock, second_vendor: Mock) -> None:
    first.stop()
    before = second_vendor.asked()
    stream = gateway.client().chat.completions.create(
        model="openai-slow", messages=[{"role": "user", "content": "word " * 60}], stream=True
    )
    next(iter(stream))
    stream.close()
    assert second_vendor.next_record(before)["outcome"] == "client-left"
    gateway.settled_rows()
    assert [(row["provider"], row["outcome"]) for row in gateway.rows()] == [
        ("anthropic", "upstream_unreachable"),
        ("litellm", "cancelled"),
    ]


def test_litellm_is_none_of_the_backdoored_releases() -> None:
    lock = (ROOT / "requirements" / "litellm.txt").read_text()
    line = next(line for line in lock.splitlines() if line.startswith("litellm=="))
    assert line.split()[0].removeprefix("litellm==") not in ("1.82.7", "1.82.8")
    assert lock.count("--hash=sha256:") >= lock.count("==")

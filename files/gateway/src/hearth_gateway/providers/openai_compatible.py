"""Servers that speak OpenAI's API: LiteLLM, vLLM, Ollama, a vendor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import orjson

from hearth_gateway.providers.base import Call
from hearth_gateway.providers.http import Transport
from hearth_gateway.providers.streaming import answer
from hearth_gateway.translate.events import Event
from hearth_gateway.translate.openai_upstream_request import Dialect, build_chat_request
from hearth_gateway.translate.openai_upstream_response import ChatReader, error_from_status
from hearth_gateway.translate.traits import OPENAI, ModelTraits


@dataclass(frozen=True, slots=True)
class Options:
    """``usage_includes_cache``: whether the server's prompt_tokens counts cached tokens too."""

    dialect: Dialect = field(default_factory=Dialect)
    usage_includes_cache: bool = True


class OpenAICompatibleProvider:
    """One account at one server. ``api_key`` goes into a header and nowhere else; None for a server without."""

    is_demo = False

    def __init__(
        self,
        name: str,
        api_key: str | None,
        transport: Transport,
        options: Options = Options(),
        traits: Callable[[str], ModelTraits] = lambda _model: OPENAI,
    ) -> None:
        self._name = name
        self._transport = transport
        self._options = options
        self._traits = traits
        self._headers = {"content-type": "application/json", "user-agent": "hearth-gateway"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"

    @property
    def name(self) -> str:
        return self._name

    def close(self) -> None:
        self._transport.close()

    def stream(self, call: Call) -> Iterator[Event]:
        built = build_chat_request(
            call.request,
            call.model,
            call.max_output_tokens,
            traits=self._traits(call.model),
            dialect=self._options.dialect,
            user=call.user,
        )
        call.adjusted(built.adjusted)
        headers = {**self._headers, "accept": "text/event-stream"}
        pending = self._transport.post("/v1/chat/completions", headers, orjson.dumps(built.body), call.connect_s)
        yield from answer(pending, call, ChatReader(built.names, self._options.usage_includes_cache), error_from_status)

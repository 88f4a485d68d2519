"""Servers that speak OpenAI's API: LiteLLM, vLLM, Ollama, a vendor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from hearth_gateway.clock import SystemClock
from hearth_gateway.providers.base import Call
from hearth_gateway.providers.fetch import ImageFetcher
from hearth_gateway.providers.http import Transport
from hearth_gateway.providers.streaming import answer, document
from hearth_gateway.translate.endpoints import build_body, read_document
from hearth_gateway.translate.events import Event
from hearth_gateway.translate.fields import json_bytes
from hearth_gateway.translate.model import EndpointRequest
from hearth_gateway.translate.openai_upstream_request import Dialect, build_chat_request
from hearth_gateway.translate.openai_upstream_response import ChatReader, error_from_status
from hearth_gateway.translate.traits import OPENAI, ModelTraits
from hearth_gateway.translate.vendor_errors import Now


@dataclass(frozen=True, slots=True)
class Options:
    """``usage_includes_cache``: whether the server's prompt_tokens counts cached tokens too."""

    dialect: Dialect = field(default_factory=Dialect)
    usage_includes_cache: bool = True


class OpenAICompatibleProvider:
    """One account at one server. ``api_key`` gives the key of the moment, for a header; None for a server without.

    With a ``fetcher``, images given by address are fetched here, for models that take bytes only.
    """

    is_demo = False

    def __init__(
        self,
        name: str,
        api_key: Callable[[], str] | None,
        transport: Transport,
        options: Options = Options(),
        traits: Callable[[str], ModelTraits] = lambda _model: OPENAI,
        fetcher: ImageFetcher | None = None,
        now: Now = SystemClock.time,
    ) -> None:
        self._name = name
        self._transport = transport
        self._options = options
        self._traits = traits
        self._fetcher = fetcher
        self._headers = {"content-type": "application/json", "user-agent": "hearth-gateway"}
        self._api_key = api_key
        self._error = partial(error_from_status, now=now)

    @property
    def name(self) -> str:
        return self._name

    def close(self) -> None:
        self._transport.close()

    def stream(self, call: Call) -> Iterator[Event]:
        if isinstance(call.request, EndpointRequest):
            yield from self._endpoint(call, call.request)
            return
        request = call.request if self._fetcher is None else (yield from self._fetcher.inline(call.request, call))
        built = build_chat_request(
            request,
            call.model,
            call.max_output_tokens,
            traits=self._traits(call.model),
            dialect=self._options.dialect,
            user=call.user,
        )
        call.adjusted(built.adjusted)
        headers = self._headers_for("text/event-stream")
        pending = self._transport.post("/v1/chat/completions", headers, json_bytes(built.body), call.connect_s)
        yield from answer(pending, call, ChatReader(built.names, self._options.usage_includes_cache), self._error)

    def _headers_for(self, accept: str) -> dict[str, str]:
        headers = {**self._headers, "accept": accept}
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key()}"
        return headers

    def _endpoint(self, call: Call, request: EndpointRequest) -> Iterator[Event]:
        body = json_bytes(build_body(request, call.model, call.user))
        pending = self._transport.post(request.path, self._headers_for("application/json"), body, call.connect_s)
        yield from read_document(request, (yield from document(pending, call, self._error)))

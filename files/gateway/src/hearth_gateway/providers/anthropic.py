"""Anthropic's native Messages API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from hearth_gateway.clock import SystemClock
from hearth_gateway.providers.base import Call
from hearth_gateway.providers.http import Transport
from hearth_gateway.providers.streaming import answer
from hearth_gateway.translate.anthropic_request import build_messages_request
from hearth_gateway.translate.anthropic_response import MessageReader, error_from_status
from hearth_gateway.translate.events import Event
from hearth_gateway.translate.fields import json_bytes
from hearth_gateway.translate.traits import ModelTraits, anthropic_traits
from hearth_gateway.translate.vendor_errors import Now

# Not the newest, 2026-10-21: that one refuses `temperature` and `top_p`, also for the models that
# honour them, and changes nothing else that we send or read.
API_VERSION = "2023-06-01"


class AnthropicProvider:
    """One Anthropic account. ``api_key`` gives the key of the moment; it goes into a header and nowhere else."""

    is_demo = False

    def __init__(
        self,
        name: str,
        api_key: Callable[[], str],
        transport: Transport,
        traits: Callable[[str], ModelTraits] = anthropic_traits,
        now: Now = SystemClock.time,
    ) -> None:
        self._name = name
        self._traits = traits
        self._transport = transport
        self._api_key = api_key
        self._error = partial(error_from_status, now=now)
        self._headers = {
            "anthropic-version": API_VERSION,
            "content-type": "application/json",
            "accept": "text/event-stream",
            "user-agent": "hearth-gateway",
        }

    @property
    def name(self) -> str:
        return self._name

    def close(self) -> None:
        self._transport.close()

    def stream(self, call: Call) -> Iterator[Event]:
        traits = self._traits(call.model)
        built = build_messages_request(call.request, call.model, call.max_output_tokens, traits=traits, user=call.user)
        call.adjusted(built.adjusted)
        headers = {"x-api-key": self._api_key(), **self._headers}
        pending = self._transport.post("/v1/messages", headers, json_bytes(built.body), call.connect_s)
        yield from answer(pending, call, MessageReader(built.names), self._error)

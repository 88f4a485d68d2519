"""POST /v1/chat/completions: OpenAI's format."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from hearth_gateway.api.answering import Answering, Format
from hearth_gateway.api.door import Door
from hearth_gateway.api.responses import HearthResponse
from hearth_gateway.core.conversation import ChatService, Exchange
from hearth_gateway.translate.events import Event
from hearth_gateway.translate.openai_request import parse_chat_request
from hearth_gateway.translate.openai_response import ChunkEncoder, Collector, encode_error


class _Completion:
    """The body of a chat completion that is not streamed."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._collector = Collector()

    def add(self, event: Event) -> None:
        self._collector.add(event)

    def body(self) -> dict[str, Any]:
        exchange = self._exchange
        return self._collector.completion(f"chatcmpl-{exchange.id}", exchange.created, exchange.request.alias)


def _chunks(exchange: Exchange) -> ChunkEncoder:
    asked = exchange.request
    return ChunkEncoder(f"chatcmpl-{exchange.id}", exchange.created, asked.alias, asked.include_usage)


_FORMAT = Format(encoder=_chunks, collector=_Completion, error=encode_error)


def create_blueprint(service: ChatService, door: Door, answering: Answering) -> Blueprint:
    blueprint = Blueprint("chat", __name__)

    @blueprint.post("/v1/chat/completions")
    def create_chat_completion() -> HearthResponse:
        return answering.serve(service, door.caller(), parse_chat_request, _FORMAT)

    return blueprint

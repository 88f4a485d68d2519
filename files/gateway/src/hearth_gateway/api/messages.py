"""POST /v1/messages: Anthropic's format."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from hearth_gateway.api.answering import Answering, Format
from hearth_gateway.api.door import Door
from hearth_gateway.api.responses import HearthResponse
from hearth_gateway.core.conversation import ChatService, Exchange
from hearth_gateway.translate.events import Event
from hearth_gateway.translate.messages_request import parse_messages_request
from hearth_gateway.translate.messages_response import MessageCollector, MessageEncoder, encode_error


class _Message:
    """The body of an answer that is not streamed."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._collector = MessageCollector()

    def add(self, event: Event) -> None:
        self._collector.add(event)

    def body(self) -> dict[str, Any]:
        return self._collector.message(_id(self._exchange), self._exchange.request.alias)


def _id(exchange: Exchange) -> str:
    return f"msg_{exchange.id}"


def _events(exchange: Exchange) -> MessageEncoder:
    return MessageEncoder(_id(exchange), exchange.request.alias)


_FORMAT = Format(encoder=_events, collector=_Message, error=encode_error)


def create_blueprint(service: ChatService, door: Door, answering: Answering) -> Blueprint:
    blueprint = Blueprint("messages", __name__)

    @blueprint.post("/v1/messages")
    def create_message() -> HearthResponse:
        return answering.serve(service, door.caller(), parse_messages_request, _FORMAT)

    return blueprint

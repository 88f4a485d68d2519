"""POST /v1/embeddings and POST /v1/images/generations: OpenAI's formats, one document an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint

from hearth_gateway.api.answering import Answering, Format
from hearth_gateway.api.door import Door
from hearth_gateway.api.responses import HearthResponse
from hearth_gateway.core.conversation import ChatService, Exchange
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.translate.endpoints import parse_embeddings, parse_images
from hearth_gateway.translate.events import Document, Event
from hearth_gateway.translate.model import EndpointRequest
from hearth_gateway.translate.openai_response import encode_error

Parse = Callable[[Any], EndpointRequest]


class _Whole:
    """Hands on the one document; such an answer is never streamed, so it serves for both."""

    heartbeat = b""

    def __init__(self, _exchange: Exchange) -> None:
        self._document: dict[str, Any] = {}

    def add(self, event: Event) -> None:
        if isinstance(event, Document):
            self._document = dict(event.body)

    def body(self) -> dict[str, Any]:
        return self._document

    def encode(self, _event: Event) -> bytes:
        raise NotImplementedError("the parsers refuse streams")


_FORMAT = Format(encoder=_Whole, collector=_Whole, error=encode_error)


def create_blueprint(embeddings: ChatService, images: ChatService, door: Door, answering: Answering) -> Blueprint:
    blueprint = Blueprint("endpoints", __name__)

    def serve(service: ChatService, parse: Parse, what: str, section: str) -> HearthResponse:
        caller = door.caller()
        if not service.routes:
            message = f"This server offers no {what}: its configuration has no `{section}`."
            raise GatewayError(Kind.MODEL_NOT_FOUND, message, param="model")
        return answering.serve(service, caller, parse, _FORMAT)

    @blueprint.post("/v1/embeddings")
    def create_embeddings() -> HearthResponse:
        return serve(embeddings, parse_embeddings, "embeddings", "embedding_models")

    @blueprint.post("/v1/images/generations")
    def create_images() -> HearthResponse:
        return serve(images, parse_images, "images", "image_models")

    return blueprint

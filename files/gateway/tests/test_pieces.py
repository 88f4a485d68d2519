"""The short way to a piece of text says what the long way says, whatever comes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from hearth_gateway.errors import GatewayError
from hearth_gateway.providers.streaming import Pieces, Reader
from hearth_gateway.translate.anthropic_response import MessageReader
from hearth_gateway.translate.events import Event, Text
from hearth_gateway.translate.openai_upstream_response import ChatReader

TEXTS = ["a", "content", "1", "\u00e9\U0001f600", 'say "x"', "a\\", "\n", "\u2028", "stop", "text", "", "x" * 2000]


def openai(text: str, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return json.dumps({"id": "c-1", "created": 1, "model": "m", "choices": [choice], **more}).encode()


def anthropic(text: str, index: int = 0) -> bytes:
    return json.dumps({"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}).encode()


def read(reader: Reader, stream: list[bytes]) -> list[list[Event]]:
    """Events by SSE event, up to the fault, which stands for itself as an empty list."""
    pieces, found = Pieces(reader), []
    for data in stream:
        try:
            read = pieces.read(data)
        except GatewayError:
            return [*found, []]
        found.append([Text(read)] if isinstance(read, str) else read)
    return found


def read_plainly(reader: Reader, stream: list[bytes]) -> list[list[Event]]:
    found = []
    for data in stream:
        try:
            found.append(reader.read(data))
        except GatewayError:
            return [*found, []]
    return found


OTHERS = {
    "openai": [
        b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}',
        b'{"choices":[{"index":0,"delta":{"reasoning_content":"hm"},"finish_reason":null}]}',
        b'{"choices":[{"index":0,"delta":{"content":"end"},"finish_reason":"stop"}]}',
        b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}',
        openai("padded", obfuscation="k3j4"),
        openai("padded", obfuscation="a"),
        b'{"error":{"message":"no","code":"500"}}',
        b"[DONE]",
    ],
    "anthropic": [
        b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"x"}}',
        b'{"type":"content_block_start","index":1,"content_block":{"type":"thinking","thinking":""}}',
        b'{"type":"content_block_delta","index":1,"delta":{"type":"thinking_delta","thinking":"hm"}}',
        b'{"type":"content_block_stop","index":0}',
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}',
        b'{"type":"ping"}',
        anthropic("other block", 2),
        b'{"type":"error","error":{"type":"overloaded_error","message":"no"}}',
        b'{"type":"message_stop"}',
    ],
}
READERS: dict[str, tuple[Callable[[], Reader], Callable[[str], bytes]]] = {
    "openai": (lambda: ChatReader({}), openai),
    "anthropic": (lambda: MessageReader({}), anthropic),
}


def mutate(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data))
    kind = chance.randrange(4)
    if kind == 0:
        return data[:at] + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes([chance.randrange(256)]) + data[at:]
    if kind == 2:
        return data[:at]
    return data[:at] + chance.choice([b'"', b"\\", b'","x":"', b"\xff", b"\x00", b"}"]) + data[at:]


@pytest.mark.parametrize("vendor", READERS)
def test_same_as_the_reader_alone(vendor: str) -> None:
    chance = random.Random(20261121)
    make_reader, make = READERS[vendor]
    for _ in range(2000):
        stream = [chance.choice(OTHERS[vendor]) if chance.random() < 0.15 else make(chance.choice(TEXTS)) for _ in range(12)]
        if chance.random() < 0.5:
            at = chance.randrange(len(stream))
            stream[at] = mutate(chance, stream[at])
        assert read(make_reader(), stream) == read_plainly(make_reader(), stream), stream


class Counting:
    """A reader that counts what it has to parse."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.asked = 0

    def read(self, data: bytes) -> list[Event]:
        self.asked += 1
        return self._reader.read(data)

    def plain(self, data: bytes) -> str | None:
        self.asked += 1
        return self._reader.plain(data)

    def read_whole(self, body: bytes) -> list[Event]:
        return self._reader.read_whole(body)

    def end(self) -> list[Event]:
        return self._reader.end()


@pytest.mark.parametrize("vendor", READERS)
def test_the_short_way_is_taken(vendor: str) -> None:
    make_reader, make = READERS[vendor]
    reader = Counting(make_reader())
    assert read(reader, [make(f"word {number}") for number in range(100)]) == [[Text(f"word {number}")] for number in range(100)]
    assert reader.asked == 2  # the first piece, and one made from it to be sure


def test_padding_is_tried_three_times() -> None:
    """OpenAI may pad every event anew, so that its length tells nothing."""
    reader = Counting(ChatReader({}))
    read(reader, [openai("word", obfuscation="x" * number) for number in range(100)])
    assert reader.asked == 103

"""T43: server-sent events as they really arrive."""

from __future__ import annotations

import pytest

from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.translate.sse import SseParser

STREAM = (
    "\ufeff: a comment\n"
    'event: one\ndata: {"text": "Grüße 🔥"}\n\n'
    "data:no space\r\ndata: second line\r\nid: 3\r\nretry: 5\r\nunknown: x\r\n\r\n"
    "data\n\n"
    ":\n\n\n"
    "event: only a name\n\n"
    "data: old mac\r\rdata: end"
).encode()
EVENTS = [
    ("one", '{"text": "Grüße 🔥"}'.encode()),
    ("", b"no space\nsecond line"),
    ("", b""),
    ("", b"old mac"),
    ("", b"end"),
]


def parse(*chunks: bytes) -> list[tuple[str, bytes]]:
    parser = SseParser(1_000_000)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events + parser.end()


def test_whole() -> None:
    assert parse(STREAM) == EVENTS


@pytest.mark.parametrize("size", range(1, 12))
def test_cut_into_pieces_of_any_size(size: int) -> None:
    assert parse(*(STREAM[start : start + size] for start in range(0, len(STREAM), size))) == EVENTS


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_cut_in_two_at_every_byte(cut: int) -> None:
    assert parse(STREAM[:cut], b"", STREAM[cut:]) == EVENTS


def test_only_line_ends_of_the_standard_end_lines() -> None:
    # str.splitlines would cut at these; the standard does not.
    data = "data: a\x0bb\x0cc\x85d\u2028e\n\n".encode()
    assert parse(data) == [("", "a\x0bb\x0cc\x85d\u2028e".encode())]


@pytest.mark.parametrize(
    "chunks",
    [[b"data: " + b"x" * 101 + b"\n\n"], [b"x" * 60, b"y" * 60], [b"data: " + b"x" * 60 + b"\n"] * 2],
    ids=["one line", "a line without end", "many lines of one event"],
)
def test_an_event_has_a_largest_size(chunks: list[bytes]) -> None:
    parser = SseParser(100)
    with pytest.raises(GatewayError) as caught:
        for chunk in chunks:
            parser.feed(chunk)
    assert caught.value.kind is Kind.UPSTREAM_PROTOCOL


def test_the_limit_is_per_event() -> None:
    parser = SseParser(100)
    for _ in range(50):
        assert parser.feed(b"data: " + b"x" * 90 + b"\n\n") == [("", b"x" * 90)]

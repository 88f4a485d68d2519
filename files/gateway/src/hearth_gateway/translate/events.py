"""What a provider yields while it answers. One encoder per client format turns these into bytes;
the meter reads the same events, so streaming and non-streaming share one path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from hearth_gateway.records import record

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@record
class Text:
    text: str


@record
class Thinking:
    """The model's reasoning. Kept apart from ``Text``: it must not show up as the answer."""

    text: str


@record
class ThinkingEnd:
    """One run of ``Thinking`` is over. ``signature`` is what lets a caller send it back in a later turn."""

    signature: str


@record
class RedactedThinking:
    """A run of reasoning that the vendor encrypted. To be sent back in a later turn, and to nothing else."""

    data: str


@record
class ToolStart:
    """``index`` counts tool calls from 0, not content blocks."""

    index: int
    id: str
    name: str


@record
class ToolArguments:
    """A fragment of the call's JSON arguments. All of them come before anything else that is content."""

    index: int
    fragment: str


@record
class Usage:
    """Tokens of the whole answer *so far* (cumulative, not a difference).

    ``input`` excludes what came from or went to the prompt cache. ``cache_write`` is the total of
    both cache lifetimes, ``cache_write_1h`` the part kept for an hour.
    """

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    output: int = 0

    @property
    def prompt(self) -> int:
        """All tokens of the prompt, wherever they were read from."""
        return self.input + self.cache_read + self.cache_write

    def with_present(
        self,
        input: int | None = None,  # noqa: A002  (the field's name)
        cache_read: int | None = None,
        cache_write: int | None = None,
        cache_write_1h: int | None = None,
        output: int | None = None,
    ) -> Usage:
        """Overwrite what is present, keep the rest.

        Vendors send partial, cumulative counts. Adding them bills twice; treating "absent" as zero
        loses what an earlier event said; treating an explicit zero as absent keeps a stale value.
        """
        return Usage(
            self.input if input is None else input,
            self.cache_read if cache_read is None else cache_read,
            self.cache_write if cache_write is None else cache_write,
            self.cache_write_1h if cache_write_1h is None else cache_write_1h,
            self.output if output is None else output,
        )


@record
class Document:
    """The whole answer of an endpoint that is no chat, in the client's format. ``images`` is how many were made."""

    body: Mapping[str, Any]
    images: int = 0


@record
class End:
    """The vendor said, itself, that the answer is complete. Nothing follows.

    ``stop_sequence`` is the caller's stop sequence that ended it, if the vendor says which. ``unknown``:
    the vendor's reason is one nobody here has heard of, and ``reason`` a guess.
    """

    reason: FinishReason
    stop_sequence: str | None = None
    unknown: bool = False


@record
class Idle:
    """Nothing to show. Lets the layers above send a heartbeat and check their clocks.

    ``alive`` means that the vendor did send something, such as a ping: it is working, not silent.
    ``begun``: it said that its answer begins, with reasoning of which it may show nothing for long.
    """

    alive: bool = False
    begun: bool = False


IDLE = Idle()
ALIVE = Idle(alive=True)
BEGUN = Idle(alive=True, begun=True)

Content = Document | Text | Thinking | ThinkingEnd | RedactedThinking | ToolStart | ToolArguments
Event = Content | Usage | End | Idle
_CONTENT = frozenset(get_args(Content))


def is_content(event: Event) -> bool:
    """From the first such event on, no other provider may take over: the client has seen words."""
    return type(event) in _CONTENT


def content_bytes(event: Event) -> int:
    """Size in UTF-8 of what the client has seen with this event: what an answer that broke off is billed by."""
    if isinstance(event, Text | Thinking):
        return utf8_bytes(event.text)
    if isinstance(event, ToolArguments):
        return utf8_bytes(event.fragment)
    return len(event.name) if isinstance(event, ToolStart) else 0


def utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))

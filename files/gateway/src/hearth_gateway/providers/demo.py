"""A provider that needs no key and no network, and says so."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hearth_gateway.clock import Clock
from hearth_gateway.providers.base import Call
from hearth_gateway.translate.events import End, Event, Text, Usage

ANSWER = """I am the demo provider. No language model read your message, and nothing left this \
machine: these are fixed sentences that come with Hearth, streamed word by word as a real answer \
would be.

What you can try with me:

- **Stop** me in the middle of a sentence.
- Switch between light and dark, or open this page on your phone.
- Call the same API from a program:

```
curl $URL/v1/chat/completions \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}'
```

For real answers, give the gateway a key of a model provider. The token counts of this answer are \
counts of words."""

_WORD = re.compile(r"\S+\s*")


class DemoProvider:
    """Streams ``ANSWER``. Usage is deterministic: one token per word, on both sides."""

    is_demo = True

    def __init__(self, name: str, clock: Clock, word_delay_s: float = 0.025) -> None:
        self._name = name
        self._clock = clock
        self._delay_s = word_delay_s

    @property
    def name(self) -> str:
        return self._name

    def close(self) -> None:
        """Nothing is held open."""

    def stream(self, call: Call) -> Iterator[Event]:
        words = _WORD.findall(ANSWER)
        allowed = min(call.request.max_tokens or call.max_output_tokens, call.max_output_tokens)
        usage = Usage(input=sum(len(text.split()) for text in call.request.texts()))
        yield usage
        for count, word in enumerate(words[:allowed], 1):
            self._clock.sleep(self._delay_s)
            yield usage.with_present(output=count)
            yield Text(word)
        yield End("stop" if allowed >= len(words) else "length")

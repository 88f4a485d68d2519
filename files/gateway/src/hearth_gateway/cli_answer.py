"""What the commands print on standard output, which may be full, closed or not UTF-8."""

from __future__ import annotations

import os
import sys


class UnprintedError(Exception):
    """Why standard output did not take an answer, as a few words."""


def answer(text: str) -> None:
    """Print at once, while it can still be said that it failed. Raises ``UnprintedError``."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError as error:
        raise UnprintedError(f"standard output is {error.encoding} and not UTF-8") from None
    except OSError as error:
        # What is left in the buffer goes there when Python ends, and not to the same error once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise UnprintedError(error.strerror or "unknown") from None

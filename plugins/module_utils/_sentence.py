# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What went wrong, as a module shows it."""

from __future__ import annotations


def sentence(error: Exception | str) -> str:
    """What an error says, as the beginning of a sentence. Inside the code it is the middle of one."""
    text = str(error)
    return text[:1].upper() + text[1:]

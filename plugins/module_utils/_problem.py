# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What stands in the way of a run: the form in which _preflight.py and _topology.py tell it, and the report prints it."""

from __future__ import annotations

Problem = dict[str, str]


def problem(host: str, problem: str, fix: str) -> Problem:
    """One thing that is wrong on a host (or with `inventory`), and what to do about it. Both begin in lower case."""
    return {"host": host, "problem": problem, "fix": fix}
